package org.lora4j.layer;

import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.lora4j.ops.Tensors;

/**
 * Rounds a matrix to the values that quantised weights can hold, as the quantisers PEFT's LoftQ uses do; the result is not
 * packed.
 */
final class Quantizer {
    /** Elements, in row-major order, that share a scale. */
    private static final int BLOCK = 64;

    /** Steps on either side of zero. */
    private static final double INT8 = 127;

    /** Quantiles of the normal distribution, scaled to [-1, 1], with 0 among them (QLoRA, arXiv:2305.14314). */
    private static final float[] NF2 = {-1f, 0f, 0.33791524f, 1f};

    private static final float[] NF4 = {
        -1f,
        -0.6961928f,
        -0.52507305f,
        -0.3949175f,
        -0.28444138f,
        -0.18477343f,
        -0.09105004f,
        0f,
        0.0795803f,
        0.1609302f,
        0.2461123f,
        0.33791524f,
        0.44070983f,
        0.562617f,
        0.72295684f,
        1f
    };

    private Quantizer() {}

    /**
     * What is left of a matrix after quantising it.
     *
     * @param bits 2 or 4: normal float, blocks of 64 elements, the last one shorter; 8: whole numbers times a scale per
     *     row, which is taken from the row in half precision as bitsandbytes does
     */
    static Tensor round(Tensor matrix, int bits) {
        return bits == 8 ? rows(matrix) : blocks(matrix, bits == 2 ? NF2 : NF4);
    }

    private static Tensor rows(Tensor matrix) {
        Tensor half = matrix.to(torch.ScalarType.Half).to(Tensors.type(matrix));
        Tensor most = half.abs().amax(new long[] {1}, true);
        Tensor steps = half.mul(most.reciprocal().mul(new Scalar(INT8))).round();
        return finite(steps.mul(most).mul(new Scalar(1 / INT8)));
    }

    private static Tensor blocks(Tensor matrix, float[] levels) {
        long size = matrix.numel();
        long padded = (size + BLOCK - 1) / BLOCK * BLOCK;
        Tensor flat =
                torch.constant_pad_nd(matrix.reshape(-1), 0, padded - size).view(-1, BLOCK);
        Tensor most = flat.abs().amax(new long[] {1}, true);
        Tensor table = torch.tensor(levels).to(matrix.device(), Tensors.type(matrix));
        long last = levels.length - 1L;
        Tensor middles = table.narrow(0, 0, last).add(table.narrow(0, 1, last)).div(new Scalar(2.0));
        Tensor index = torch.bucketize(flat.mul(most.reciprocal()), middles);
        Tensor rounded = table.index_select(0, index.view(-1)).view(-1, BLOCK).mul(most);
        return finite(rounded).view(-1).narrow(0, 0, size).view(Tensors.shape(matrix));
    }

    /** Rows and blocks of zeros have no scale; they stay zero. */
    private static Tensor finite(Tensor rounded) {
        return rounded.nan_to_num();
    }
}
