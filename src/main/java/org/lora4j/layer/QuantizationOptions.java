package org.lora4j.layer;

import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.jspecify.annotations.Nullable;
import org.lora4j.ops.FourBit;
import org.lora4j.ops.FourBitWeight;
import org.lora4j.ops.Int8Weight;
import org.lora4j.ops.QuantizedWeight;

/**
 * How the weight of a linear layer is quantized and computed with; what {@code BitsAndBytesConfig} of transformers sets.
 *
 * @param kind 4 or 8 bits
 * @param blockSize elements that share a scale, a power of two from 32 to 4096; only for 4 bits
 * @param doubleQuant whether the scales are quantized too, {@code bnb_4bit_use_double_quant}; only for 4 bits
 * @param computeType the type the layer computes in, {@code bnb_4bit_compute_dtype}; null for the type of its input. The
 *     output has the input's type either way
 */
public record QuantizationOptions(
        Kind kind,
        int blockSize,
        boolean doubleQuant,
        @Nullable ScalarType computeType) {
    /** The kinds of quantization. */
    public enum Kind {
        /** 4 bits: {@link FourBit#NF4}. */
        NF4,
        /** 4 bits: {@link FourBit#FP4}. */
        FP4,
        /** 8 bits: {@link Int8Weight}. */
        INT8
    }

    public QuantizationOptions {
        if (kind != Kind.INT8 && (blockSize < 32 || blockSize > 4096 || Integer.bitCount(blockSize) != 1)) {
            throw new IllegalArgumentException("QuantizationOptions.blockSize is " + blockSize
                    + " but must be a power of two from 32 to 4096, as in bitsandbytes");
        }
        if (computeType != null
                && computeType != ScalarType.Float
                && computeType != ScalarType.BFloat16
                && computeType != ScalarType.Half
                && computeType != ScalarType.Double) {
            throw new IllegalArgumentException("QuantizationOptions.computeType is " + computeType
                    + " but must be Float, BFloat16, Half or Double");
        }
    }

    /** What QLoRA trains on: NF4 in blocks of 64 with double quantization. */
    public static QuantizationOptions nf4() {
        return new QuantizationOptions(Kind.NF4, 64, true, null);
    }

    /** 8 bits with a scale for each row. */
    public static QuantizationOptions int8() {
        return new QuantizationOptions(Kind.INT8, 0, false, null);
    }

    public QuantizationOptions withBlockSize(int blockSize) {
        return new QuantizationOptions(kind, blockSize, doubleQuant, computeType);
    }

    public QuantizationOptions withDoubleQuant(boolean doubleQuant) {
        return new QuantizationOptions(kind, blockSize, doubleQuant, computeType);
    }

    public QuantizationOptions withComputeType(@Nullable ScalarType computeType) {
        return new QuantizationOptions(kind, blockSize, doubleQuant, computeType);
    }

    /**
     * Quantizes a weight.
     *
     * @param weight Float, BFloat16 or Half (out, in)
     * @return a weight that belongs to the caller's {@code PointerScope}
     * @throws IllegalArgumentException if it has another shape or type
     * @throws ArithmeticException if it holds NaN or infinity
     */
    public QuantizedWeight quantize(Tensor weight) {
        return switch (kind) {
            case NF4 -> FourBitWeight.quantize(weight, FourBit.NF4, blockSize, doubleQuant);
            case FP4 -> FourBitWeight.quantize(weight, FourBit.FP4, blockSize, doubleQuant);
            case INT8 -> Int8Weight.quantize(weight);
        };
    }
}
