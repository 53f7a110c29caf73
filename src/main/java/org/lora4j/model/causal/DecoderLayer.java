package org.lora4j.model.causal;

import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.Tensor;

/** Attention and feed-forward block, each on the normalised residual stream and added to it. */
final class DecoderLayer extends Module {
    Attention self_attn;
    Mlp mlp;
    RmsNorm input_layernorm;
    RmsNorm post_attention_layernorm;

    DecoderLayer(CausalConfig config, int layer, Leaves leaves) {
        super("DecoderLayer");
        leaves.handles().keep(this);
        int hidden = config.hiddenSize();
        double eps = config.rmsNormEps();
        self_attn = register_module("self_attn", new Attention(config, layer, leaves));
        mlp = register_module("mlp", new Mlp(config, leaves));
        input_layernorm = register_module("input_layernorm", new RmsNorm(hidden, eps, leaves.handles()));
        post_attention_layernorm =
                register_module("post_attention_layernorm", new RmsNorm(hidden, eps, leaves.handles()));
    }

    /** {@code x} of shape (B, T, hidden); the result has its shape. */
    Tensor forward(Tensor x, Pass pass) {
        x = x.add(self_attn.forward(input_layernorm.forward(x), pass));
        return x.add(mlp.forward(post_attention_layernorm.forward(x), pass.paged() != null));
    }
}
