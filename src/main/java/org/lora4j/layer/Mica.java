package org.lora4j.layer;

import org.bytedeco.pytorch.Tensor;

/**
 * Minor component adaptation (arXiv:2604.01694), PEFT's {@code init_lora_weights="mica"}: B holds the left singular
 * vectors of the r smallest singular values of the weight and does not train; A starts as zero.
 */
final class Mica {
    private Mica() {}

    /**
     * @param weight shape (out, in); of an embedding (dimension, vocabulary). The base stays.
     * @throws IllegalArgumentException if the rank exceeds the smaller side, or the weight is not finite
     */
    static Start start(Tensor weight, int rank) {
        Tensor matrix = Start.matrix("mica", weight, rank);
        Svd svd = Svd.of(matrix);
        Tensor b = svd.part(svd.s().size(0) - rank, rank).u().contiguous();
        return new Start(matrix.new_zeros(rank, matrix.size(1)), b, null);
    }
}
