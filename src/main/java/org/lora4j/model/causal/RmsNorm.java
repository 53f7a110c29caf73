package org.lora4j.model.causal;

import static org.bytedeco.pytorch.global.torch.empty;
import static org.bytedeco.pytorch.global.torch.rms_norm;

import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.DoubleOptional;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.Tensor;

/**
 * Root mean square normalisation over the last dimension: {@code y = w * round(x / sqrt(mean(x^2) + eps))}.
 *
 * <p>The quotient is computed in float32 and rounded to the input's type before the product with w, as Hugging Face does
 * it; the two roundings are part of the models' numerics.
 */
final class RmsNorm extends Module {
    final Tensor weight;
    private final long[] shape;
    private final DoubleOptional eps;

    RmsNorm(long width, double eps, Handles handles) {
        super("RmsNorm");
        handles.keep(this);
        this.shape = new long[] {width};
        try (PointerScope scope = new PointerScope()) {
            this.eps = handles.keep(new DoubleOptional(eps));
            // A handle of its own: the one register_parameter returns points into the module's table.
            this.weight = handles.keep(new Tensor(register_parameter("weight", empty(1), false)));
        }
    }

    /** {@code x} of shape (..., width); the result has its shape and type. */
    Tensor forward(Tensor x) {
        return rms_norm(x, shape, Torch.NO_TENSOR, eps).mul(weight);
    }
}
