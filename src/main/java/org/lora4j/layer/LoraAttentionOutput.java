package org.lora4j.layer;

import org.bytedeco.javacpp.Pointer;
import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.PeftCompat;

/**
 * The adapters of an attention's output projection. {@link LoraMultiheadAttention} applies them, whose path also decides rank
 * and scale, and in whose {@code base_layer} PEFT's files have them. With {@link PeftCompat#ATTENTION_OUTPUT_TWICE} the updates
 * count twice.
 */
public final class LoraAttentionOutput extends LinearImpl implements LoraLayer {
    private static final String NAME = "out_proj";

    private final LinearImpl original;
    private final String attention;
    private final LayerAdapters adapters;

    LoraAttentionOutput(LinearImpl original, String attention, ActiveAdapters active) {
        super((Pointer) original);
        this.original = original;
        this.attention = attention;
        this.adapters = new LayerAdapters(attention + "." + NAME, active);
    }

    @Override
    public boolean isPart() {
        return true;
    }

    @Override
    public String filePath() {
        return attention + ".base_layer." + NAME;
    }

    @Override
    public String configPath() {
        return attention;
    }

    @Override
    public int repeats() {
        return adapters.has(PeftCompat.ATTENTION_OUTPUT_TWICE) ? 2 : 1;
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
    public Tensor base(Tensor x) {
        return original.forward(x);
    }

    @Override
    public Tensor delta(LoraWeights weights, Tensor x) {
        return torch.linear(torch.linear(x, weights.a()), weights.b());
    }

    @Override
    public long outputs() {
        return weight().size(0);
    }

    @Override
    public long[] shapeA(int rank) {
        return new long[] {rank, weight().size(1)};
    }

    @Override
    public long[] shapeB(int rank) {
        return new long[] {weight().size(0), rank};
    }

    /** The attention has checked it. */
    @Override
    public void check(LoraConfig config) {}
}
