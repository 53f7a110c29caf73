package org.lora4j.layer;

import org.bytedeco.javacpp.Pointer;
import org.bytedeco.pytorch.Conv2dImpl;
import org.bytedeco.pytorch.DeviceOptional;
import org.bytedeco.pytorch.Tensor;

/** A {@code Conv2dImpl} with adapters; see {@link Convolution} for the shapes. */
public final class LoraConv2d extends Conv2dImpl implements LoraLayer {
    private final Conv2dImpl original;
    private final LayerAdapters adapters;

    public LoraConv2d(Conv2dImpl original, String path, ActiveAdapters active) {
        super((Pointer) original);
        this.original = original;
        this.adapters = new LayerAdapters(path, active);
    }

    @Override
    public Conv2dImpl original() {
        return original;
    }

    @Override
    public String type() {
        return "lora.Conv2d";
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
        return adapters.forward(this, x, base(x));
    }

    @Override
    public Tensor base(Tensor x) {
        return original.forward(x);
    }

    @Override
    public Tensor delta(LoraWeights weights, Tensor x) {
        Conv2dImpl down = weights.down() instanceof Conv2dImpl known ? known : down(weights);
        return Convolution.up(
                down.forward(x), weights.b(), 2, options().groups().get());
    }

    @Override
    public long outputs() {
        return weight().size(0);
    }

    @Override
    public Tensor perOutput(Tensor vector) {
        return Convolution.perChannel(vector, 2);
    }

    @Override
    public long[] shapeA(int rank) {
        return Convolution.shapeA(weight(), rank, options().groups().get());
    }

    @Override
    public long[] shapeB(int rank) {
        return Convolution.shapeB(path(), weight(), rank, options().groups().get());
    }

    /** The convolution with A: a copy of the base with all its options, but to r channels and in one group. */
    private Conv2dImpl down(LoraWeights weights) {
        Conv2dImpl down = new Conv2dImpl((Pointer) original.clone(new DeviceOptional()));
        down.options().out_channels().put(weights.rank());
        down.options().groups().put(1);
        if (adapters.ignoresOptions()) {
            Convolution.forgetOptions(
                    down.options().padding_mode(), down.options().dilation(), 2);
        }
        down.weight(weights.a());
        down.bias(new Tensor());
        weights.down(down);
        return down;
    }
}
