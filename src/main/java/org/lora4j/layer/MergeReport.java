package org.lora4j.layer;

import java.util.Locale;
import java.util.OptionalDouble;

/**
 * How large the errors of quantization are beside what the adapters add to a weight. All are Frobenius norms.
 *
 * @param base what was merged into
 * @param deltaNorm of what the adapters add, {@code |sum_i s_i B_i A_i|}
 * @param quantizationError of the weight before the merge, {@code |W - Q(W)|}; empty if the original was not given
 * @param requantizationError of the merged weight, {@code |M - Q(M)|}; empty unless it was quantized again
 * @param deltaKept what is left of the adapters after the weight was quantized again: the change of the weight in the
 *     direction of what they add, 1 if all of it is left; empty unless it was quantized again
 */
public record MergeReport(
        MergeBase base,
        double deltaNorm,
        OptionalDouble quantizationError,
        OptionalDouble requantizationError,
        OptionalDouble deltaKept) {

    /** {@code |W - Q(W)|} as a multiple of what the adapters add; empty if the original was not given. */
    public OptionalDouble errorToDelta() {
        return quantizationError.isPresent()
                ? OptionalDouble.of(quantizationError.getAsDouble() / deltaNorm)
                : OptionalDouble.empty();
    }

    /**
     * Whether an error that is in the result, or that separates it from what was trained, is larger than what the adapters
     * add: with ORIGINAL and DEQUANTIZED that of the quantization, with REQUANTIZED also that of doing it again.
     */
    public boolean errorExceedsDelta() {
        return quantizationError.orElse(0) > deltaNorm || requantizationError.orElse(0) > deltaNorm;
    }

    @Override
    public String toString() {
        StringBuilder text = new StringBuilder(String.format(Locale.ROOT, "%s: |delta| %.3g", base, deltaNorm));
        quantizationError.ifPresent(
                e -> text.append(String.format(Locale.ROOT, ", |W - Q(W)| %.3g (%.3g of it)", e, e / deltaNorm)));
        requantizationError.ifPresent(
                e -> text.append(String.format(Locale.ROOT, ", |M - Q(M)| %.3g (%.3g of it)", e, e / deltaNorm)));
        deltaKept.ifPresent(kept -> text.append(String.format(Locale.ROOT, ", %.0f %% of delta kept", 100 * kept)));
        return text.toString();
    }
}
