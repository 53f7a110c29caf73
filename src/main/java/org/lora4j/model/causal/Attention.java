package org.lora4j.model.causal;

import static org.bytedeco.pytorch.global.torch.scaled_dot_product_attention;

import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.Tensor;
import org.jspecify.annotations.Nullable;

/** Causal self-attention with grouped key and value heads, rotary positions and optional norms of queries and keys. */
final class Attention extends Module {
    LinearImpl q_proj;
    LinearImpl k_proj;
    LinearImpl v_proj;
    LinearImpl o_proj;

    @Nullable
    RmsNorm q_norm;

    @Nullable
    RmsNorm k_norm;

    private final int layer;
    private final int heads;
    private final int kvHeads;
    private final int headDim;
    private final long width;
    private final boolean slides;

    Attention(CausalConfig config, int layer, Leaves leaves) {
        super("Attention");
        leaves.handles().keep(this);
        this.layer = layer;
        this.heads = config.heads();
        this.kvHeads = config.kvHeads();
        this.headDim = config.headDim();
        this.width = config.queryWidth();
        this.slides = config.slidingLayers().get(layer);
        boolean bias = config.attentionInputBias();
        long hidden = config.hiddenSize();
        q_proj = register_module("q_proj", leaves.linear(hidden, config.queryWidth(), bias));
        k_proj = register_module("k_proj", leaves.linear(hidden, config.keyWidth(), bias));
        v_proj = register_module("v_proj", leaves.linear(hidden, config.keyWidth(), bias));
        o_proj = register_module("o_proj", leaves.linear(config.queryWidth(), hidden, config.attentionOutputBias()));
        if (config.qkNorm()) {
            q_norm = register_module("q_norm", new RmsNorm(headDim, config.rmsNormEps(), leaves.handles()));
            k_norm = register_module("k_norm", new RmsNorm(headDim, config.rmsNormEps(), leaves.handles()));
        }
    }

    /** {@code x} of shape (B, T, hidden); the result has its shape. */
    Tensor forward(Tensor x, Pass pass) {
        long batch = pass.batch();
        long tokens = pass.tokens();
        Tensor q = q_proj.forward(x).reshape(batch, tokens, heads, headDim);
        Tensor k = k_proj.forward(x).reshape(batch, tokens, kvHeads, headDim);
        Tensor v = v_proj.forward(x).reshape(batch, tokens, kvHeads, headDim);
        if (q_norm != null && k_norm != null) {
            q = q_norm.forward(q);
            k = k_norm.forward(k);
        }
        q = RotaryTable.turn(q, pass.cos(), pass.sin(), headDim);
        k = RotaryTable.turn(k, pass.cos(), pass.sin(), headDim);
        PagedPass paged = pass.paged();
        if (paged != null) {
            Tensor y = paged.attend(layer, slides, q.flatten(1, -1), k.flatten(1, -1), v.flatten(1, -1));
            return o_proj.forward(y.view(batch, tokens, width));
        }
        q = q.transpose(1, 2);
        k = k.transpose(1, 2);
        v = v.transpose(1, 2);
        KvCache cache = pass.cache();
        if (cache != null) {
            k = cache.addKeys(layer, k);
            v = cache.addValues(layer, v);
        }
        Pass.Sight sight = slides ? pass.sliding() : pass.full();
        Tensor y = scaled_dot_product_attention(
                q, k, v, sight.mask(), pass.dropout(), sight.causal(), Torch.NO_DOUBLE, heads != kvHeads);
        return o_proj.forward(y.transpose(1, 2).reshape(batch, tokens, width));
    }
}
