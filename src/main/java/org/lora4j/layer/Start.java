package org.lora4j.layer;

import java.util.Arrays;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.jspecify.annotations.Nullable;
import org.lora4j.ops.Tensors;

/**
 * Where training starts at one layer. The handles belong to the caller, or to its {@code PointerScope}.
 *
 * @param a the factor A, shape (r, in), float32, or float64 beside a float64 weight
 * @param b the factor B, shape (out, r), of the same type
 * @param residual the new base weight, shape (out, in), in the type of the old one, where A and B start with a part of
 *     it: {@code residual + scale * B A} is the old weight. Null where the base stays.
 */
public record Start(Tensor a, Tensor b, @Nullable Tensor residual) {
    /** The weight as a matrix to compute with; see the longer form. */
    static Tensor matrix(String init, Tensor weight, int rank) {
        return matrix(init, "weight", weight, rank);
    }

    /**
     * A matrix to compute with: shape (out, in), float32 or float64, outside the graph.
     *
     * @param what it is, for the message
     * @throws IllegalArgumentException if it is no matrix of finite floating-point numbers, or the rank is too high
     */
    static Tensor matrix(String init, String what, Tensor given, int rank) {
        Tensor detached = given.detach();
        if (given.dim() != 2 || !given.is_floating_point()) {
            throw new IllegalArgumentException(init + " needs a matrix (out, in) of floating-point numbers, but the "
                    + what + " is " + Tensors.describe(given) + ": use another initialisation for this layer");
        }
        long most = Math.min(given.size(0), given.size(1));
        if (rank < 1 || rank > most) {
            throw new IllegalArgumentException(init + " needs a rank of at least 1 and at most the smaller side of the "
                    + what + ", but the rank is " + rank + " and the " + what + " "
                    + Arrays.toString(Tensors.shape(given)) + ": set r or rankPattern to " + most + " or less");
        }
        if (!torch.isfinite(detached).all().item_bool()) {
            throw new IllegalArgumentException(init + " needs finite numbers, but the " + what
                    + " has NaN or infinite values: check where it" + " comes from");
        }
        return detached.to(working(given));
    }

    /** @throws IllegalArgumentException if a scale that is divided by is not a finite number above 0 */
    static void checkScale(String init, double scale) {
        if (!(scale > 0 && scale < Double.POSITIVE_INFINITY)) {
            throw new IllegalArgumentException(init + " divides the factors by the scale, which is " + scale
                    + ": set loraAlpha or alphaPattern above 0");
        }
    }

    /** The type of the factors beside a weight. */
    static torch.ScalarType working(Tensor weight) {
        return Tensors.type(weight) == torch.ScalarType.Double ? torch.ScalarType.Double : torch.ScalarType.Float;
    }

    /** The start that leaves {@code round(matrix - scale * B A)} as base. */
    static Start split(Tensor weight, Tensor matrix, Factors factors, double scale) {
        Tensor taken = factors.b().matmul(factors.a()).mul(new Scalar(scale));
        return new Start(factors.a(), factors.b(), matrix.sub(taken).to(Tensors.type(weight)));
    }
}
