package org.lora4j.ops;

import java.util.EnumMap;
import java.util.Map;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.format.DType;

/** The element types safetensors and LibTorch have in common. */
final class DTypes {
    private static final Map<DType, ScalarType> LIBTORCH = new EnumMap<>(DType.class);

    static {
        LIBTORCH.put(DType.BOOL, ScalarType.Bool);
        LIBTORCH.put(DType.F4, ScalarType.Float4_e2m1fn_x2);
        LIBTORCH.put(DType.U8, ScalarType.Byte);
        LIBTORCH.put(DType.I8, ScalarType.Char);
        LIBTORCH.put(DType.F8_E5M2, ScalarType.Float8_e5m2);
        LIBTORCH.put(DType.F8_E4M3, ScalarType.Float8_e4m3fn);
        LIBTORCH.put(DType.F8_E8M0, ScalarType.Float8_e8m0fnu);
        LIBTORCH.put(DType.F8_E4M3FNUZ, ScalarType.Float8_e4m3fnuz);
        LIBTORCH.put(DType.F8_E5M2FNUZ, ScalarType.Float8_e5m2fnuz);
        LIBTORCH.put(DType.I16, ScalarType.Short);
        LIBTORCH.put(DType.U16, ScalarType.UInt16);
        LIBTORCH.put(DType.F16, ScalarType.Half);
        LIBTORCH.put(DType.BF16, ScalarType.BFloat16);
        LIBTORCH.put(DType.I32, ScalarType.Int);
        LIBTORCH.put(DType.U32, ScalarType.UInt32);
        LIBTORCH.put(DType.F32, ScalarType.Float);
        LIBTORCH.put(DType.C64, ScalarType.ComplexFloat);
        LIBTORCH.put(DType.F64, ScalarType.Double);
        LIBTORCH.put(DType.I64, ScalarType.Long);
        LIBTORCH.put(DType.U64, ScalarType.UInt64);
    }

    private DTypes() {}

    /**
     * LibTorch's type for a type of safetensors.
     *
     * @throws IllegalArgumentException if LibTorch has none
     */
    static ScalarType libTorch(DType dtype) {
        ScalarType type = LIBTORCH.get(dtype);
        if (type == null) {
            throw new IllegalArgumentException("LibTorch has no element type for " + dtype
                    + "; read the bytes with SafetensorsFile or convert the tensor first");
        }
        return type;
    }

    /**
     * The type of safetensors for one of LibTorch.
     *
     * @throws IllegalArgumentException if safetensors has none
     */
    static DType safetensors(ScalarType type) {
        for (Map.Entry<DType, ScalarType> entry : LIBTORCH.entrySet()) {
            if (entry.getValue() == type) {
                return entry.getKey();
            }
        }
        throw new IllegalArgumentException(
                "safetensors has no element type for " + type + "; convert the tensor to a type it has");
    }

    /**
     * The shape LibTorch gives a tensor of this type: F4 has two elements in one of LibTorch's, so its last size is
     * halved.
     *
     * @throws IllegalArgumentException if the last size of an F4 tensor is odd
     */
    static long[] libTorchShape(DType dtype, long[] shape) {
        if (dtype != DType.F4) {
            return shape;
        }
        if (shape.length == 0 || shape[shape.length - 1] % 2 != 0) {
            throw new IllegalArgumentException(
                    "LibTorch packs two F4 elements into one, so their last size must be even; convert the tensor");
        }
        long[] packed = shape.clone();
        packed[packed.length - 1] /= 2;
        return packed;
    }

    /** The shape safetensors gives a tensor: the inverse of {@link #libTorchShape}. */
    static long[] safetensorsShape(DType dtype, long[] shape) {
        if (dtype != DType.F4) {
            return shape;
        }
        if (shape.length == 0) {
            throw new IllegalArgumentException("a scalar of two F4 elements has no shape in safetensors; reshape it");
        }
        long[] unpacked = shape.clone();
        unpacked[unpacked.length - 1] = Math.multiplyExact(unpacked[unpacked.length - 1], 2L);
        return unpacked;
    }
}
