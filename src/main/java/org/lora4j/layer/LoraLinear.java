package org.lora4j.layer;

import org.bytedeco.javacpp.Pointer;
import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;

/** A {@code LinearImpl} with adapters: {@code y = W x + b + sum_i s_i B_i (A_i x)}. */
public final class LoraLinear extends LinearImpl implements LoraLayer {
    private final LinearImpl original;
    private final LayerAdapters adapters;

    public LoraLinear(LinearImpl original, String path, ActiveAdapters active) {
        super((Pointer) original);
        this.original = original;
        this.adapters = new LayerAdapters(path, active);
    }

    @Override
    public LinearImpl original() {
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
        return weight;
    }

    @Override
    public Tensor forward(Tensor x) {
        Tensor fused = FusedLinear.forward(this, x);
        return fused == null ? adapters.forward(this, x, base(x)) : fused;
    }

    @Override
    public Tensor base(Tensor x) {
        return adapters.isPooled() ? RowStable.forward(original, x) : original.forward(x);
    }

    @Override
    public Tensor delta(LoraWeights weights, Tensor x) {
        return torch.linear(torch.linear(x, weights.a()), weights.b());
    }

    @Override
    public long outputs() {
        return options().out_features().get();
    }

    @Override
    public long[] shapeA(int rank) {
        return new long[] {rank, options().in_features().get()};
    }

    @Override
    public long[] shapeB(int rank) {
        return new long[] {options().out_features().get(), rank};
    }
}
