package org.lora4j.layer;

import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;

/** An {@link HfConv1D} with adapters; A and B as for a linear layer, the weight is the transposed matrix. */
public final class LoraHfConv1D extends HfConv1D implements LoraLayer {
    private final HfConv1D original;
    private final LayerAdapters adapters;

    public LoraHfConv1D(HfConv1D original, String path, ActiveAdapters active) {
        super(original);
        this.original = original;
        this.adapters = new LayerAdapters(path, active);
    }

    @Override
    public HfConv1D original() {
        return original;
    }

    @Override
    public String type() {
        return "lora.Linear";
    }

    @Override
    public LayerAdapters adapters() {
        return adapters;
    }

    @Override
    public boolean isMatrix() {
        return true;
    }

    @Override
    public Tensor matrix(Tensor weight) {
        return weight.t();
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
        return torch.linear(torch.linear(x, weights.a()), weights.b());
    }

    @Override
    public long outputs() {
        return weight().size(1);
    }

    @Override
    public long[] shapeA(int rank) {
        return new long[] {rank, weight().size(0)};
    }

    @Override
    public long[] shapeB(int rank) {
        return new long[] {weight().size(1), rank};
    }
}
