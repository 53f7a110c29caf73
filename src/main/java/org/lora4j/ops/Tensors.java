package org.lora4j.ops;

import java.util.Arrays;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;

/** Small helpers for LibTorch tensor handles. */
public final class Tensors {
    static {
        LibTorch.load();
    }

    private Tensors() {}

    /** The sizes of a tensor. */
    public static long[] shape(Tensor tensor) {
        long[] shape = new long[(int) tensor.dim()];
        for (int i = 0; i < shape.length; i++) {
            shape[i] = tensor.size(i);
        }
        return shape;
    }

    /** The type of a tensor's elements; unlike {@code scalar_type()}, safe to compare with {@code ==}. */
    public static ScalarType type(Tensor tensor) {
        return tensor.scalar_type().intern();
    }

    /** Type and shape for an error message, such as {@code Float[3, 4]}. */
    public static String describe(Tensor tensor) {
        return tensor.defined() ? type(tensor) + Arrays.toString(shape(tensor)) : "undefined";
    }

    /**
     * Lets a handle outlive the {@code PointerScope} it was made in. The caller closes it.
     *
     * @return the same handle
     */
    public static <P extends org.bytedeco.javacpp.Pointer> P keep(P pointer) {
        pointer.retainReference();
        return pointer;
    }
}
