package org.lora4j.model.causal;

import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.EmbeddingImpl;
import org.bytedeco.pytorch.EmbeddingOptions;
import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.LinearOptions;

/**
 * LibTorch leaves that state their true sizes and hold next to no memory: their weights are put in place by
 * {@code set_data} once the whole tree is built.
 */
final class Leaves {
    private final Handles handles;

    Leaves(Handles handles) {
        this.handles = handles;
    }

    Handles handles() {
        return handles;
    }

    LinearImpl linear(long in, long out, boolean bias) {
        try (PointerScope scope = new PointerScope()) {
            LinearOptions options = new LinearOptions(1, 1);
            options.bias().put(bias);
            LinearImpl linear = handles.keep(new LinearImpl(options));
            linear.options().in_features().put(in);
            linear.options().out_features().put(out);
            return linear;
        }
    }

    EmbeddingImpl embedding(long count, long width) {
        try (PointerScope scope = new PointerScope()) {
            EmbeddingImpl embedding = handles.keep(new EmbeddingImpl(new EmbeddingOptions(1, 1)));
            embedding.options().num_embeddings().put(count);
            embedding.options().embedding_dim().put(width);
            return embedding;
        }
    }
}
