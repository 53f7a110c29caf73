package org.lora4j.ops;

import java.util.List;
import org.bytedeco.pytorch.Device;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;

/**
 * The weight of a linear layer in 4 or 8 bits, as bitsandbytes quantizes and stores it. Immutable; none of its operations
 * records gradients.
 *
 * <p>Whoever makes one owns its tensors: they belong to the {@code PointerScope} they were made in unless {@link #keep}
 * is called, and are freed by {@link #close}.
 */
public sealed interface QuantizedWeight extends AutoCloseable permits FourBitWeight, Int8Weight {
    /** Rows of the weight: the features the layer puts out. */
    long rows();

    /** Columns of the weight: the features the layer takes. */
    long columns();

    /** The type the weight had: Float, BFloat16 or Half. */
    ScalarType dtype();

    /** The elements in few bits: uint8 (ceil(rows * columns / 2), 1) for 4 bits, int8 (rows, columns) for 8. */
    Tensor packed();

    /** All tensors, {@link #packed} the first. */
    List<Tensor> tensors();

    /** For a log, such as {@code nf4, blocks of 64, double quantization}. */
    String description();

    /**
     * Some rows of the weight the quantized one stands for. The product of value and scale is float32 and rounded to the
     * type once.
     *
     * @param from the first row
     * @param to the row after the last
     * @param type any floating-point type
     * @return (to - from, columns)
     * @throws IllegalArgumentException if there are no such rows
     */
    default Tensor dequantize(ScalarType type, long from, long to) {
        checkRows(this, from, to);
        return Dequantizing.rows(this, type, from, to);
    }

    /** The weight the quantized one stands for: (rows, columns). */
    default Tensor dequantize(ScalarType type) {
        return dequantize(type, 0, rows());
    }

    /**
     * Another weight, quantized as this one and of its {@link #dtype}.
     *
     * @param weight Float, BFloat16 or Half (rows, columns)
     * @throws IllegalArgumentException if it has another shape or type
     * @throws ArithmeticException if it holds NaN or infinity
     */
    QuantizedWeight requantize(Tensor weight);

    /** The same weight with {@code packed} for its elements and its scales on that tensor's device. */
    QuantizedWeight on(Tensor packed);

    /** Bytes of all tensors. */
    default long bytes() {
        return tensors().stream().mapToLong(Tensor::nbytes).sum();
    }

    /** Lets the tensors outlive the scope they were made in; the caller closes this. */
    default QuantizedWeight keep() {
        tensors().forEach(Tensors::keep);
        return this;
    }

    @Override
    default void close() {
        tensors().forEach(Tensor::close);
    }

    /** The device of the elements. */
    default Device device() {
        return packed().device();
    }

    /** What every weight to quantize must be. */
    static void checkWeight(Tensor weight) {
        ScalarType type = Tensors.type(weight);
        if (weight.dim() != 2 || type != ScalarType.Float && type != ScalarType.BFloat16 && type != ScalarType.Half) {
            throw new IllegalArgumentException("a weight to quantize must be Float, BFloat16 or Half (out, in), but is "
                    + Tensors.describe(weight) + ": convert or reshape it first");
        }
    }

    /** What every range of rows must be. */
    static void checkRows(QuantizedWeight weight, long from, long to) {
        if (from < 0 || to > weight.rows() || from > to) {
            throw new IllegalArgumentException("rows " + from + " to " + to + " are asked for, but the weight has "
                    + weight.rows() + ": pass 0 <= from <= to <= rows()");
        }
    }
}
