package org.lora4j.combine;

import org.bytedeco.pytorch.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * A layer of a combined adapter. The tensors are in the caller's scope.
 *
 * @param a A, (r, in) or (r, in, *kernel)
 * @param b B, (out, r) or (out, r / groups, 1, ...)
 * @param bias the bias on B, (out), or null
 * @param magnitude DoRA's magnitude, (out), or null
 */
public record LayerResult(
        Tensor a, Tensor b, @Nullable Tensor bias, @Nullable Tensor magnitude, LayerReport report) {}
