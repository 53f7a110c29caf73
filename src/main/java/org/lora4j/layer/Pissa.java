package org.lora4j.layer;

import org.bytedeco.pytorch.Tensor;
import org.lora4j.config.InitLoraWeights;

/**
 * Principal singular values and vectors adaptation (arXiv:2404.02948), PEFT's {@code init_lora_weights="pissa"}: A and B
 * start with the largest r components of the weight.
 */
final class Pissa {
    private static final String ITERATIONS = "pissa_niter_";

    private Pissa() {}

    /**
     * The start {@code init} asks for: {@code pissa} decomposes the weight, {@code pissa_niter_n} finds the components at
     * random with n power iterations, which is faster for a large weight and less exact.
     *
     * @param weight shape (out, in)
     * @throws IllegalArgumentException if the rank exceeds the smaller side, the scale is not above 0, or the weight is
     *     not finite
     */
    static Start start(Tensor weight, int rank, double scale, InitLoraWeights init) {
        Tensor matrix = Start.matrix("pissa", weight, rank);
        Start.checkScale("pissa", scale);
        String name = init.toString();
        Svd svd = name.startsWith(ITERATIONS)
                ? Svd.randomized(matrix, rank, Integer.parseInt(name.substring(ITERATIONS.length())), null)
                : Svd.of(matrix).part(0, rank);
        return Start.split(weight, matrix, svd.balanced(scale), scale);
    }
}
