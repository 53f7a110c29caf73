package org.lora4j.model.causal;

import java.util.ArrayList;
import java.util.List;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.EmbeddingImpl;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.ModuleListImpl;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.jspecify.annotations.Nullable;

/** Embedding, decoder layers and final norm: the {@code model} of a Hugging Face checkpoint. */
final class Decoder extends Module {
    EmbeddingImpl embed_tokens;
    List<DecoderLayer> layers = new ArrayList<>();
    RmsNorm norm;
    private final CausalConfig config;
    private final RotaryTable rotary;

    Decoder(CausalConfig config, Leaves leaves) {
        super("Decoder");
        leaves.handles().keep(this);
        this.config = config;
        this.rotary = new RotaryTable(config.rope(), config.headDim());
        embed_tokens = register_module("embed_tokens", leaves.embedding(config.vocabSize(), config.hiddenSize()));
        for (int i = 0; i < config.layers(); i++) {
            layers.add(new DecoderLayer(config, i, leaves));
        }
        registerLayers();
        norm = register_module("norm", new RmsNorm(config.hiddenSize(), config.rmsNormEps(), leaves.handles()));
    }

    private void registerLayers() {
        try (PointerScope scope = new PointerScope()) {
            ModuleListImpl list = new ModuleListImpl();
            layers.forEach(list::push_back);
            register_module("layers", list);
        }
    }

    /** Replaces the stack, in LibTorch's tree of modules too, whose order stays. */
    void layers(List<DecoderLayer> next) {
        unregister_module("layers");
        unregister_module("norm");
        layers.clear();
        layers.addAll(next);
        registerLayers();
        norm = register_module("norm", norm);
    }

    /**
     * Hidden states of the tokens of one pass.
     *
     * @param ids int64 (B, T)
     * @param seen bool (B, past + T), false at padding, or null
     * @return normalised hidden states (B, T, hidden)
     */
    Tensor forward(Tensor ids, @Nullable Tensor seen, @Nullable KvCache cache) {
        Tensor x = embed_tokens.forward(ids);
        if (cache != null) {
            cache.reserve(ids.size(1));
        }
        Pass pass = pass(ids, x, seen, cache);
        for (DecoderLayer layer : layers) {
            x = layer.forward(x, pass);
        }
        if (cache != null) {
            cache.advance(pass.tokens());
        }
        return norm.forward(x);
    }

    /**
     * Hidden states of the tokens of several sequences, to whose pages their keys and values are added.
     *
     * @return normalised hidden states (N, 1, hidden)
     */
    Tensor forward(PagedBatch batch, PagedCache cache) {
        int tokens = batch.tokens().length;
        Tensor ids = Tensor.create(batch.tokens(), tokens, 1)
                .to(embed_tokens.weight().device(), ScalarType.Long);
        Tensor x = embed_tokens.forward(ids);
        int last = 0;
        long[] positions = new long[tokens];
        for (int t = 0; t < tokens; t++) {
            positions[t] = batch.positions()[t];
            last = Math.max(last, batch.positions()[t]);
        }
        RotaryTable.Angles angles = rotary.upTo(last + 1L, x);
        Tensor at = Tensor.create(positions).to(x.device(), ScalarType.Long);
        long[] shape = {tokens, 1, 1, config.headDim()};
        Pass pass = Pass.paged(
                tokens,
                angles.cos().index_select(0, at).view(shape),
                angles.sin().index_select(0, at).view(shape),
                new PagedPass(config, batch, cache, x));
        for (DecoderLayer layer : layers) {
            x = layer.forward(x, pass);
        }
        return norm.forward(x);
    }

    /**
     * As {@link #forward} for rows of several texts.
     *
     * @param segments int64 (B, T), the text each token is of; the tokens of a text follow each other
     */
    Tensor packed(Tensor ids, Tensor segments) {
        Tensor x = embed_tokens.forward(ids);
        long batch = ids.size(0);
        long tokens = ids.size(1);
        RotaryTable.Angles angles = rotary.upTo(tokens, x);
        Pass pass;
        try (NoGradGuard guard = new NoGradGuard()) {
            Tensor index = torch.arange(new Scalar(tokens)).to(ids.device(), ScalarType.Long);
            Tensor positions = index.sub(starts(segments, index)).reshape(-1);
            long[] shape = {batch, tokens, 1, config.headDim()};
            Pass.Sight full = Pass.Sight.of(segments, index, 0);
            pass = new Pass(
                    batch,
                    tokens,
                    angles.cos().index_select(0, positions).view(shape),
                    angles.sin().index_select(0, positions).view(shape),
                    full,
                    config.slidingWindow() == 0 ? full : Pass.Sight.of(segments, index, config.slidingWindow()),
                    null,
                    config.attentionDropout() > 0 && is_training() ? config.attentionDropout() : 0,
                    null);
        }
        for (DecoderLayer layer : layers) {
            x = layer.forward(x, pass);
        }
        return norm.forward(x);
    }

    /** Where in its row the text of each token starts. */
    private static Tensor starts(Tensor segments, Tensor index) {
        long tokens = segments.size(1);
        Tensor begins = torch.zeros_like(segments);
        if (tokens > 1) {
            Tensor changes = segments.narrow(1, 1, tokens - 1).ne(segments.narrow(1, 0, tokens - 1));
            begins.narrow(1, 1, tokens - 1).copy_(changes.to(ScalarType.Long).mul(index.narrow(0, 1, tokens - 1)));
        }
        return begins.cummax(1).get0();
    }

    private Pass pass(Tensor ids, Tensor x, @Nullable Tensor seen, @Nullable KvCache cache) {
        long batch = ids.size(0);
        long tokens = ids.size(1);
        long past = cache == null ? 0 : cache.length();
        RotaryTable.Angles angles = rotary.upTo(past + tokens, x);
        Tensor cos;
        Tensor sin;
        Pass.Sight full;
        Pass.Sight sliding;
        try (NoGradGuard guard = new NoGradGuard()) {
            if (seen == null) {
                cos = angles.cos().narrow(0, past, tokens).unsqueeze(1);
                sin = angles.sin().narrow(0, past, tokens).unsqueeze(1);
            } else {
                Tensor positions = positions(seen).narrow(1, past, tokens).reshape(-1);
                long[] shape = {batch, tokens, 1, config.headDim()};
                cos = angles.cos().index_select(0, positions).view(shape);
                sin = angles.sin().index_select(0, positions).view(shape);
            }
            full = Pass.Sight.of(past, tokens, seen, 0, x);
            sliding = config.slidingWindow() == 0 ? full : Pass.Sight.of(past, tokens, seen, config.slidingWindow(), x);
        }
        double dropout = config.attentionDropout() > 0 && is_training() ? config.attentionDropout() : 0;
        return new Pass(batch, tokens, cos, sin, full, sliding, cache, dropout, null);
    }

    /** Positions that count from the first token that is no padding; padding has position 0. */
    private static Tensor positions(Tensor seen) {
        return seen.to(ScalarType.Long).cumsum(1).sub(new Scalar(1)).clamp_min(new Scalar(0));
    }
}
