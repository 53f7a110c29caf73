package org.lora4j.layer;

import java.util.Arrays;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.lora4j.ops.Tensors;

/**
 * Factors for a dense change of a weight, by a truncated singular value decomposition: PEFT's {@code convert_to_lora}. The
 * adapter's scale is 1, so its alpha is its rank. The largest element of every row of A is positive, so equal changes give
 * equal factors.
 */
public final class DeltaToLora {
    private DeltaToLora() {}

    /**
     * The best approximation of a rank: A the right singular vectors, B the left ones times the singular values.
     *
     * @param delta shape (out, in), or (out, in, *kernel) of a convolution without groups
     * @return A (r, in, *kernel) and B (out, r, 1, ...), in the type of the change
     * @throws IllegalArgumentException if the rank exceeds the smaller side of (out, in * kernel), or the change is not
     *     finite
     */
    public static Factors ofRank(Tensor delta, int rank) {
        return factors(delta, Svd.of(matrix(delta, rank)), rank);
    }

    /**
     * The approximation of the lowest rank whose squared singular values sum up to a part of the whole.
     *
     * @param delta as for {@link #ofRank}
     * @param energy the part, above 0 and at most 1
     * @throws IllegalArgumentException if the part is not so, or the change is not finite
     */
    public static Factors ofEnergy(Tensor delta, double energy) {
        if (!(energy > 0 && energy <= 1)) {
            throw new IllegalArgumentException(
                    "energy is " + energy + ", but it must be above 0 and at most 1, such as 0.9");
        }
        Svd svd = Svd.of(matrix(delta, 1));
        Tensor sums = svd.s().square().cumsum(0);
        double wanted = energy * sums.select(0, -1).item_double();
        int rank = 1;
        while (rank < sums.size(0) && sums.select(0, rank - 1L).item_double() < wanted) {
            rank++;
        }
        return factors(delta, svd, rank);
    }

    private static Tensor matrix(Tensor delta, int rank) {
        return Start.matrix("LoRA from a dense change", "change", delta.dim() > 2 ? delta.flatten(1, -1) : delta, rank);
    }

    private static Factors factors(Tensor delta, Svd whole, int rank) {
        Svd svd = whole.part(0, rank).withPositivePeaks();
        long[] shapeA = Tensors.shape(delta);
        shapeA[0] = rank;
        long[] shapeB = new long[shapeA.length];
        Arrays.fill(shapeB, 1);
        shapeB[0] = delta.size(0);
        shapeB[1] = rank;
        torch.ScalarType type = Tensors.type(delta);
        return new Factors(
                svd.vh().to(type).contiguous().view(shapeA),
                svd.u().mul(svd.s()).to(type).contiguous().view(shapeB));
    }
}
