package org.lora4j.layer;

import org.bytedeco.javacpp.Pointer;
import org.bytedeco.pytorch.Conv1dImpl;
import org.bytedeco.pytorch.Conv1dOptions;
import org.bytedeco.pytorch.DetailConv1dOptions;
import org.bytedeco.pytorch.Tensor;

/** A {@code Conv1dImpl} with adapters; see {@link Convolution} for the shapes. */
public final class LoraConv1d extends Conv1dImpl implements LoraLayer {
    private final Conv1dImpl original;
    private final LayerAdapters adapters;

    public LoraConv1d(Conv1dImpl original, String path, ActiveAdapters active) {
        super((Pointer) original);
        this.original = original;
        this.adapters = new LayerAdapters(path, active);
    }

    @Override
    public Conv1dImpl original() {
        return original;
    }

    @Override
    public String type() {
        return "lora.Conv1d";
    }

    @Override
    public LayerAdapters adapters() {
        return adapters;
    }

    @Override
    public boolean isMatrix() {
        return false;
    }

    @Override
    public Tensor matrix(Tensor weight) {
        return Convolution.matrix(path(), weight, options().groups().get());
    }

    @Override
    public Tensor forward(Tensor x) {
        return adapters.forward(this, x, super.forward(x));
    }

    @Override
    public Tensor delta(LoraWeights weights, Tensor x) {
        Conv1dImpl down = weights.down() instanceof Conv1dImpl known ? known : down(weights);
        return Convolution.up(
                down.forward(x), weights.b(), 1, options().groups().get());
    }

    @Override
    public long[] shapeA(int rank) {
        return Convolution.shapeA(weight(), rank, options().groups().get());
    }

    @Override
    public long[] shapeB(int rank) {
        return Convolution.shapeB(path(), weight(), rank, options().groups().get());
    }

    /** The convolution with A: like the base in stride, padding and dilation, but to r channels and in one group. */
    private Conv1dImpl down(LoraWeights weights) {
        DetailConv1dOptions base = options();
        Conv1dOptions options = new Conv1dOptions(base.in_channels().get(), weights.rank(), base.kernel_size());
        for (int i = 0; i < 1; i++) {
            options.stride().put(i, base.stride().get(i));
            options.dilation().put(i, base.dilation().get(i));
        }
        options.padding().put(base.padding());
        options.padding_mode().put(base.padding_mode());
        options.bias().put(false);
        Conv1dImpl down = new Conv1dImpl(options);
        down.weight(weights.a());
        weights.down(down);
        return down;
    }
}
