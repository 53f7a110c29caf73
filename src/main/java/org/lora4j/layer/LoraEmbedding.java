package org.lora4j.layer;

import org.bytedeco.javacpp.Pointer;
import org.bytedeco.pytorch.EmbeddingImpl;
import org.bytedeco.pytorch.EmbeddingOptions;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.jspecify.annotations.Nullable;

/**
 * An {@code EmbeddingImpl} with adapters: {@code y[t] = W[id_t] + s B A[:, id_t]} with A (r, vocabulary), B (dimension, r).
 * As in PEFT, dropout does not apply to token ids.
 */
public final class LoraEmbedding extends EmbeddingImpl implements LoraLayer {
    private final EmbeddingImpl original;
    private final LayerAdapters adapters;

    /** @throws IllegalArgumentException if the embedding renormalises its rows, which adapters cannot follow */
    public LoraEmbedding(EmbeddingImpl original, String path, ActiveAdapters active) {
        super((Pointer) original);
        if (original.options().max_norm().has_value()) {
            throw new IllegalArgumentException("embedding '" + path + "' has max_norm set, which rescales rows while "
                    + "reading them: clear max_norm or leave the embedding out of target_modules");
        }
        this.original = original;
        this.adapters = new LayerAdapters(path, active);
    }

    @Override
    public EmbeddingImpl original() {
        return original;
    }

    @Override
    public String type() {
        return "lora.Embedding";
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
        return weight.t();
    }

    @Override
    public Tensor forward(Tensor ids) {
        return adapters.forward(this, ids, base(ids));
    }

    @Override
    public Tensor base(Tensor ids) {
        return original.forward(ids);
    }

    @Override
    public Tensor delta(LoraWeights weights, Tensor ids) {
        EmbeddingOptions options = options();
        long padding = options.padding_idx().has_value() ? options.padding_idx().get() : -1;
        boolean byFrequency = options.scale_grad_by_freq().get();
        Tensor rows = torch.embedding(weights.a().t(), ids, padding, byFrequency, false);
        return torch.linear(rows, weights.b());
    }

    @Override
    public long outputs() {
        return weight().size(1);
    }

    @Override
    public @Nullable Tensor bias() {
        return null;
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
