package org.lora4j.layer;

import java.util.List;
import java.util.OptionalDouble;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.jspecify.annotations.Nullable;
import org.lora4j.ops.LowRank;
import org.lora4j.ops.Ops;
import org.lora4j.ops.QuantizedWeight;
import org.lora4j.ops.Scopes;
import org.lora4j.ops.Tensors;

/**
 * Merges adapters into quantized weights. None of the methods changes its arguments; results belong to the caller's
 * {@code PointerScope}.
 */
public final class QuantizedMerge {
    /** Elements worked on at a time where only a sum is wanted. */
    private static final long TILE = 1 << 20;

    private QuantizedMerge() {}

    /**
     * The weight in full precision with adapters merged in.
     *
     * @param weight the quantized weight (out, in) the adapters were trained on
     * @param updates the adapters, each of shape (out, in)
     * @param base ORIGINAL or DEQUANTIZED
     * @param original the weight that was quantized, (out, in); needed for ORIGINAL only
     * @param type Float, BFloat16 or Half
     * @return (out, in) of that type
     * @throws IllegalArgumentException if a shape does not fit, or the base needs an original that is not given
     * @throws ArithmeticException if the result is not finite
     */
    public static Tensor dense(
            QuantizedWeight weight, List<LowRank> updates, MergeBase base, @Nullable Tensor original, ScalarType type) {
        if (base == MergeBase.REQUANTIZED) {
            throw new IllegalArgumentException("REQUANTIZED gives no full weight: call requantized");
        }
        if (base == MergeBase.ORIGINAL && original == null) {
            throw new IllegalArgumentException(
                    "ORIGINAL needs the weight that was quantized: pass it, or merge into DEQUANTIZED");
        }
        if (original != null) {
            checkOriginal(weight, original);
        }
        return Scopes.within(() -> {
            try (NoGradGuard noGrad = new NoGradGuard()) {
                Tensor start = base == MergeBase.ORIGINAL && original != null
                        ? original.detach()
                                .to(packedDevice(weight), ScalarType.Float)
                                .contiguous()
                                .clone()
                        : weight.dequantize(ScalarType.Float);
                Ops.current().merge(start, updates);
                Tensor merged = start.to(type);
                if (!torch.isfinite(merged).all().item_bool()) {
                    throw new ArithmeticException(
                            "merging gives NaN or infinite weights: an adapter seems broken; check"
                                    + " its values and scale");
                }
                return merged;
            }
        });
    }

    /**
     * The weight with adapters merged in and quantized again, as it was before; PEFT's merge of quantized layers.
     *
     * @param weight the quantized weight (out, in) the adapters were trained on
     * @param updates the adapters, each of shape (out, in)
     * @throws IllegalArgumentException if a shape does not fit
     * @throws ArithmeticException if the result is not finite
     */
    public static QuantizedWeight requantized(QuantizedWeight weight, List<LowRank> updates) {
        try (Tensor merged = dense(weight, updates, MergeBase.DEQUANTIZED, null, ScalarType.Float)) {
            return weight.requantize(merged);
        }
    }

    /**
     * How large the errors are beside what the adapters add.
     *
     * @param weight the quantized weight (out, in) the adapters were trained on
     * @param updates the adapters
     * @param base what they are merged into
     * @param original the weight that was quantized, or null if it is not at hand
     * @param requantized the result of {@link #requantized}, or null
     */
    public static MergeReport report(
            QuantizedWeight weight,
            List<LowRank> updates,
            MergeBase base,
            @Nullable Tensor original,
            @Nullable QuantizedWeight requantized) {
        if (original != null) {
            checkOriginal(weight, original);
        }
        double delta = 0;
        double error = 0;
        double again = 0;
        double along = 0;
        long rows = Math.max(1, TILE / Math.max(1, weight.columns()));
        for (long from = 0; from < weight.rows(); from += rows) {
            long to = Math.min(weight.rows(), from + rows);
            try (PointerScope scope = new PointerScope();
                    NoGradGuard noGrad = new NoGradGuard()) {
                Tensor before = weight.dequantize(ScalarType.Double, from, to);
                Tensor added = before.new_zeros(Tensors.shape(before));
                for (LowRank update : updates) {
                    Tensor b = update.b().detach().narrow(0, from, to - from);
                    added = added.addmm(
                            b.to(packedDevice(weight), ScalarType.Double),
                            update.a().detach().to(packedDevice(weight), ScalarType.Double),
                            new Scalar(1.0),
                            new Scalar(update.scale()));
                }
                delta += square(added);
                if (original != null) {
                    error += square(before.sub(rows(original, before, from, to)));
                }
                if (requantized != null) {
                    Tensor after = requantized.dequantize(ScalarType.Double, from, to);
                    again += square(after.sub(before).sub(added));
                    along += after.sub(before).mul(added).sum().item_double();
                }
            }
        }
        return new MergeReport(
                base,
                Math.sqrt(delta),
                original == null ? OptionalDouble.empty() : OptionalDouble.of(Math.sqrt(error)),
                requantized == null ? OptionalDouble.empty() : OptionalDouble.of(Math.sqrt(again)),
                requantized == null || delta == 0 ? OptionalDouble.empty() : OptionalDouble.of(along / delta));
    }

    /** {@code |W - Q(W)|}. */
    static double error(QuantizedWeight weight, Tensor original) {
        return report(weight, List.of(), MergeBase.DEQUANTIZED, original, null)
                .quantizationError()
                .getAsDouble();
    }

    private static Tensor rows(Tensor original, Tensor like, long from, long to) {
        return original.detach().narrow(0, from, to - from).to(like.device(), ScalarType.Double);
    }

    private static double square(Tensor tensor) {
        return tensor.mul(tensor).sum().item_double();
    }

    private static org.bytedeco.pytorch.Device packedDevice(QuantizedWeight weight) {
        return weight.packed().device();
    }

    private static void checkOriginal(QuantizedWeight weight, Tensor original) {
        if (original.dim() != 2 || original.size(0) != weight.rows() || original.size(1) != weight.columns()) {
            throw new IllegalArgumentException("the original is " + Tensors.describe(original) + " but must be ("
                    + weight.rows() + ", " + weight.columns() + "): pass the weight of this layer");
        }
    }
}
