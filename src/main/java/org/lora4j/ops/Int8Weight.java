package org.lora4j.ops;

import java.util.List;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;

/**
 * A weight in 8 bits, as LLM.int8() (arXiv:2208.07339) stores one: each row in units of a 127th of its largest magnitude.
 * As in bitsandbytes the weight is rounded to float16 first. Inputs are not quantized, and no columns are kept apart.
 *
 * @param packed int8 (rows, columns); bitsandbytes calls it CB
 * @param scales the largest magnitude of each row, float32 (rows); bitsandbytes calls it SCB
 * @param dtype the type the weight had
 */
public record Int8Weight(Tensor packed, Tensor scales, ScalarType dtype) implements QuantizedWeight {
    /** 1 / 127 as bitsandbytes writes it. */
    private static final double STEP = 7.874015718698502e-3;

    static {
        LibTorch.load();
    }

    public Int8Weight {
        if (Tensors.type(packed) != ScalarType.Char || packed.dim() != 2) {
            throw new IllegalArgumentException(
                    "an 8-bit weight must be Char[out, in], but is " + Tensors.describe(packed));
        }
        if (Tensors.type(scales) != ScalarType.Float || scales.dim() != 1 || scales.numel() != packed.size(0)) {
            throw new IllegalArgumentException("SCB must be Float[" + packed.size(0) + "], but is "
                    + Tensors.describe(scales) + ": take both tensors of one weight");
        }
    }

    /**
     * Quantizes a weight.
     *
     * @param weight Float, BFloat16 or Half (rows, columns), any strides
     * @throws IllegalArgumentException if shape or type are others
     * @throws ArithmeticException if the weight holds NaN, infinity or a number too large for float16
     */
    public static Int8Weight quantize(Tensor weight) {
        QuantizedWeight.checkWeight(weight);
        try (PointerScope scope = new PointerScope();
                NoGradGuard noGrad = new NoGradGuard()) {
            Tensor half = weight.detach().to(ScalarType.Half).to(ScalarType.Float);
            Tensor scales = half.size(1) == 0
                    ? half.new_zeros(half.size(0))
                    : half.abs().amax(new long[] {1}, false);
            if (!torch.isfinite(scales).all().item_bool()) {
                throw new ArithmeticException("the weight " + Tensors.describe(weight)
                        + " holds NaN, infinity or a number beyond 65504, the most float16 can hold: check where it comes"
                        + " from, or use 4 bits");
            }
            Tensor zeroRows = scales.eq(new Scalar(0));
            Tensor factors = scales.reciprocal().mul(new Scalar(127)).masked_fill_(zeroRows, new Scalar(0));
            Tensor packed = torch.round(half.mul(factors.unsqueeze(1)))
                    .to(ScalarType.Char)
                    .contiguous();
            return new Int8Weight(Scopes.leave(scope, packed), Scopes.leave(scope, scales), Tensors.type(weight));
        }
    }

    @Override
    public long rows() {
        return packed.size(0);
    }

    @Override
    public long columns() {
        return packed.size(1);
    }

    /** {@link #dequantize} by LibTorch's operations. */
    Tensor inLibTorch(ScalarType type, long from, long to) {
        return Scopes.within(() -> {
            try (NoGradGuard noGrad = new NoGradGuard()) {
                Tensor rows = packed.narrow(0, from, to - from).to(ScalarType.Float);
                Tensor column = scales.narrow(0, from, to - from).unsqueeze(1);
                return rows.mul_(column).mul_(new Scalar(STEP)).to(type);
            }
        });
    }

    @Override
    public Int8Weight requantize(Tensor weight) {
        if (weight.dim() != 2 || weight.size(0) != rows() || weight.size(1) != columns()) {
            throw new IllegalArgumentException("the weight is " + Tensors.describe(weight) + " but must be (" + rows()
                    + ", " + columns() + "): pass one of the same layer");
        }
        Int8Weight made = quantize(weight);
        return new Int8Weight(made.packed, made.scales, dtype);
    }

    @Override
    public Int8Weight on(Tensor packed) {
        return new Int8Weight(packed, scales.to(packed.device(), ScalarType.Float), dtype);
    }

    @Override
    public List<Tensor> tensors() {
        return List.of(packed, scales);
    }

    @Override
    public String description() {
        return "int8, a scale per row";
    }
}
