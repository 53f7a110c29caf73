package org.lora4j.layer;

import java.util.Arrays;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.T_TensorTensor_T;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.lora4j.ops.Tensors;

/**
 * Orthonormal adaptation (arXiv:2406.01775), PEFT's {@code init_lora_weights="olora"}: with W = Q R, B starts as the first
 * r columns of Q and A as the first r rows of R.
 */
final class Olora {
    private Olora() {}

    /**
     * @param weight shape (out, in)
     * @throws IllegalArgumentException if the rank exceeds the smaller side, or the weight is not finite
     */
    static Start start(Tensor weight, int rank, double scale) {
        Tensor matrix = Start.matrix("olora", weight, rank);
        return Start.split(weight, matrix, factors(matrix, rank), scale);
    }

    /**
     * What PEFT does where the layer stores its weight as (in, out): it decomposes the weight as stored, so that the layer
     * computes something else from the start. See {@link org.lora4j.config.PeftCompat#OLORA_NOT_TRANSPOSED}.
     *
     * @param weight shape (out, in), as for {@link #start}
     * @throws IllegalArgumentException if the weight is not square either, which fails in PEFT
     */
    static Start notTransposed(Tensor weight, int rank, double scale) {
        Tensor stored = Start.matrix("olora", weight, rank).t();
        if (weight.size(0) != weight.size(1)) {
            throw new IllegalArgumentException(
                    "olora as in PEFT, without transposing, needs a square weight, but it is "
                            + Arrays.toString(Tensors.shape(weight)) + ": leave OLORA_NOT_TRANSPOSED out");
        }
        Factors factors = factors(stored, rank);
        Tensor taken = factors.b().matmul(factors.a()).mul(new Scalar(scale));
        Tensor residual = stored.sub(taken).t().to(Tensors.type(weight));
        return new Start(factors.a(), factors.b(), residual);
    }

    private static Factors factors(Tensor matrix, int rank) {
        try (T_TensorTensor_T qr = torch.linalg_qr(matrix)) {
            return new Factors(
                    qr.get1().narrow(0, 0, rank).contiguous(),
                    qr.get0().narrow(1, 0, rank).contiguous());
        }
    }
}
