package org.lora4j.layer;

import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.lora4j.config.LoftqConfig;
import org.lora4j.ops.Tensors;

/**
 * LoRA fine-tuning aware quantisation (arXiv:2310.08659), PEFT's {@code init_lora_weights="loftq"}: the base becomes a
 * quantised weight, and A and B start with the best approximation of what that loses.
 */
final class Loftq {
    private Loftq() {}

    /**
     * Quantises and fits in turn: {@code Q = quantise(W - s B A)}, then {@code s B A} is the largest r components of
     * {@code W - Q}. The residual is Q, with full precision numbers; unlike other starts it only approximates
     * {@code W - s B A}.
     *
     * @param weight shape (out, in)
     * @param unscaled takes s as 1, as PEFT does, so that the layer starts with {@code Q + s B A} where it fitted
     *     {@code Q + B A}; see {@link org.lora4j.config.PeftCompat#LOFTQ_UNSCALED}
     * @throws IllegalArgumentException if the rank exceeds the smaller side, the scale is not above 0, or the weight is
     *     not finite
     */
    static Start start(Tensor weight, int rank, double scale, LoftqConfig settings, boolean unscaled) {
        Tensor matrix = Start.matrix("loftq", weight, rank);
        if (!unscaled) {
            Start.checkScale("loftq", scale);
        }
        double s = unscaled ? 1 : scale;
        Tensor quantised = Quantizer.round(matrix, settings.bits());
        Factors factors = fit(matrix, quantised, rank, s);
        for (int i = 1; i < settings.iterations(); i++) {
            Tensor fitted = factors.b().matmul(factors.a()).mul(new Scalar(s));
            quantised = Quantizer.round(matrix.sub(fitted), settings.bits());
            factors = fit(matrix, quantised, rank, s);
        }
        return new Start(factors.a(), factors.b(), quantised.to(Tensors.type(weight)));
    }

    private static Factors fit(Tensor matrix, Tensor quantised, int rank, double scale) {
        return Svd.of(matrix.sub(quantised)).part(0, rank).balanced(scale);
    }
}
