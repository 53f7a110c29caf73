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
    /**
     * A weight to compute with: shape (out, in), float32 or float64, outside the graph.
     *
     * @throws IllegalArgumentException if it is no matrix of finite floating-point numbers, or the rank is too high
     */
    static Tensor matrix(String init, Tensor weight, int rank) {
        Tensor detached = weight.detach();
        if (weight.dim() != 2 || !weight.is_floating_point()) {
            throw new IllegalArgumentException(
                    init + " starts from a matrix (out, in) of floating-point numbers, but the" + " weight is "
                            + Tensors.describe(weight) + ": use another initialisation for this layer");
        }
        long most = Math.min(weight.size(0), weight.size(1));
        if (rank < 1 || rank > most) {
            throw new IllegalArgumentException(init + " needs a rank of at least 1 and at most the smaller side of the"
                    + " weight, but the rank is " + rank + " and the weight " + Arrays.toString(Tensors.shape(weight))
                    + ": set r or rankPattern to " + most + " or less");
        }
        if (!torch.isfinite(detached).all().item_bool()) {
            throw new IllegalArgumentException(
                    init + " starts from the weight, but it has NaN or infinite values: load" + " a sound checkpoint");
        }
        return detached.to(working(weight));
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
