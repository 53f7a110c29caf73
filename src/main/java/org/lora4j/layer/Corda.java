package org.lora4j.layer;

import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.lora4j.config.CordaConfig;
import org.lora4j.ops.Tensors;

/**
 * Context-oriented decomposition adaptation (arXiv:2406.05223), PEFT's {@code init_lora_weights="corda"}: A and B start with
 * those components of the weight that the layer's inputs use most, or least.
 */
public final class Corda {
    private static final double FIRST_DAMPING = 0.01;
    /** Damping doubles this often at most; then the covariance is the identity, up to its scale. */
    private static final int DOUBLINGS = 60;

    private static final double INVERSE_ERROR = 0.05;

    /** A covariance that can be inverted, and its inverse. */
    private record Inverse(Tensor covariance, Tensor inverse) {}

    private Corda() {}

    /**
     * With the covariance C, damped until its inverse is accurate, and {@code W C = U S V^T}: the factors are the first r
     * components (ipm) or the last r (kpm) of {@code U S (V^T C^-1)}.
     *
     * @param weight shape (out, in)
     * @param covariance shape (in, in); see {@link InputCovariance}
     * @throws IllegalArgumentException if the rank exceeds the smaller side, the scale is not above 0, or weight or
     *     covariance are not finite or do not fit
     */
    public static Start start(Tensor weight, int rank, double scale, Tensor covariance, CordaConfig settings) {
        Tensor matrix = Start.matrix("corda", weight, rank);
        Start.checkScale("corda", scale);
        long in = weight.size(1);
        if (covariance.dim() != 2 || covariance.size(0) != in || covariance.size(1) != in) {
            throw new IllegalArgumentException("the covariance is " + Tensors.describe(covariance) + ", but the weight "
                    + Tensors.describe(weight) + " needs (" + in + ", " + in + "): pass that of the layer's inputs");
        }
        Inverse damped = invert(covariance.detach().to(matrix.device(), Tensors.type(matrix)));
        Svd svd = Svd.of(matrix.matmul(damped.covariance()));
        long first = settings.method() == CordaConfig.Method.IPM ? 0 : svd.s().size(0) - rank;
        Svd part = svd.part(first, rank);
        Svd chosen = new Svd(part.u(), part.s(), part.vh().matmul(damped.inverse()));
        return Start.split(weight, matrix, chosen.balanced(scale), scale);
    }

    private static Inverse invert(Tensor covariance) {
        long in = covariance.size(0);
        double diagonal = covariance.diagonal().mean().item_double();
        if (!(diagonal > 0 && diagonal < Double.POSITIVE_INFINITY)) {
            throw new IllegalArgumentException("the mean of the covariance's diagonal is " + diagonal
                    + ", but it must be above 0: give the layer inputs that are not all zero");
        }
        Tensor identity = torch.eye(in, new TensorOptions(Tensors.type(covariance)))
                .to(covariance.device(), Tensors.type(covariance));
        double damping = FIRST_DAMPING;
        for (int i = 0; i < DOUBLINGS; i++, damping *= 2) {
            Tensor damped = covariance.add(identity, new Scalar(diagonal * damping));
            Tensor inverse = torch.linalg_inv(damped);
            if (damped.matmul(inverse).sub(identity).norm().item_double() < INVERSE_ERROR) {
                return new Inverse(damped, inverse);
            }
        }
        throw new IllegalArgumentException(
                "the covariance " + Tensors.describe(covariance) + " cannot be inverted: check that it is finite");
    }
}
