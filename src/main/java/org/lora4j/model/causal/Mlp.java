package org.lora4j.model.causal;

import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.Tensor;

/** The gated feed-forward block: {@code down(act(gate(x)) * up(x))}. */
final class Mlp extends Module {
    LinearImpl gate_proj;
    LinearImpl up_proj;
    LinearImpl down_proj;
    private final Activation activation;

    Mlp(CausalConfig config, Leaves leaves) {
        super("Mlp");
        leaves.handles().keep(this);
        long hidden = config.hiddenSize();
        long inner = config.intermediateSize();
        activation = config.activation();
        gate_proj = register_module("gate_proj", leaves.linear(hidden, inner, config.mlpBias()));
        up_proj = register_module("up_proj", leaves.linear(hidden, inner, config.mlpBias()));
        down_proj = register_module("down_proj", leaves.linear(inner, hidden, config.mlpBias()));
    }

    /**
     * {@code x} of shape (..., hidden); the result has its shape.
     *
     * @param rowStable whether a row's bits must not depend on the other rows
     */
    Tensor forward(Tensor x, boolean rowStable) {
        Tensor gate = gate_proj.forward(x);
        Tensor active = rowStable ? PagedPass.activate(activation, gate) : activation.apply(gate);
        return down_proj.forward(active.mul(up_proj.forward(x)));
    }
}
