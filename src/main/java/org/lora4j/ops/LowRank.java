package org.lora4j.ops;

import org.bytedeco.pytorch.Tensor;

/**
 * One low-rank update {@code scale * B A} of a matrix with {@code out} rows and {@code in} columns.
 *
 * @param a A, shape (r, in), any strides
 * @param b B, shape (out, r), any strides
 * @param scale factor of the product; the adapter's scaling
 */
public record LowRank(Tensor a, Tensor b, double scale) {
    public LowRank {
        if (a.dim() != 2 || b.dim() != 2 || a.size(0) != b.size(1) || a.size(0) < 1) {
            throw new IllegalArgumentException("A must be (r, in) and B (out, r) with the same r >= 1, but A is "
                    + Tensors.describe(a) + " and B is " + Tensors.describe(b)
                    + ": pass the factors of one layer");
        }
    }

    public long rank() {
        return a.size(0);
    }

    public long in() {
        return a.size(1);
    }

    public long out() {
        return b.size(0);
    }
}
