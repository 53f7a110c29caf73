package org.lora4j.layer;

import java.util.Arrays;
import org.bytedeco.javacpp.LongPointer;
import org.bytedeco.pytorch.ConvPaddingMode;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptional;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.kZeros;
import org.lora4j.ops.Tensors;

/**
 * What convolutions of all dimensions share: A (r, in, *kernel) convolves like the base, B (out, r / groups, 1, ...) is a
 * convolution with kernel 1. Unlike PEFT 0.21, dilation and padding mode of the base apply to A as well.
 */
final class Convolution {
    private Convolution() {}

    /** B applied to the output of A: a grouped convolution with kernel 1. */
    static Tensor up(Tensor x, Tensor b, int dimensions, long groups) {
        long[] ones = filled(dimensions, 1);
        long[] zeros = filled(dimensions, 0);
        return torch.convolution(x, b, new TensorOptional(), ones, zeros, ones, false, zeros, groups);
    }

    /** The weight as the matrix (out, in * kernel); a view. */
    static Tensor matrix(String path, Tensor weight, long groups) {
        if (groups > 1) {
            throw new UnsupportedOperationException("convolution '" + path + "' has " + groups
                    + " groups: its update B A mixes all channels and does not fit the grouped weight; keep the adapter "
                    + "unmerged");
        }
        return weight.view(weight.size(0), -1);
    }

    /** Zero padding and no dilation, as PEFT's A has whatever the base convolution does. */
    static void forgetOptions(ConvPaddingMode mode, LongPointer dilation, int dimensions) {
        mode.put(new ConvPaddingMode(new kZeros()));
        for (int i = 0; i < dimensions; i++) {
            dilation.put(i, 1);
        }
    }

    /** A vector (channels) as (1, channels, 1, ...). */
    static Tensor perChannel(Tensor vector, int dimensions) {
        long[] shape = filled(dimensions + 2, 1);
        shape[1] = vector.numel();
        return vector.reshape(shape);
    }

    static long[] shapeA(Tensor weight, int rank, long groups) {
        long[] shape = Tensors.shape(weight);
        shape[0] = rank;
        shape[1] *= groups;
        return shape;
    }

    static long[] shapeB(String path, Tensor weight, int rank, long groups) {
        if (rank % groups != 0) {
            throw new IllegalArgumentException("r is " + rank + " for convolution '" + path + "' with " + groups
                    + " groups: it must be a multiple of the groups; set r or rankPattern so");
        }
        long[] shape = filled((int) weight.dim(), 1);
        shape[0] = weight.size(0);
        shape[1] = rank / groups;
        return shape;
    }

    private static long[] filled(int length, long value) {
        long[] array = new long[length];
        Arrays.fill(array, value);
        return array;
    }
}
