package org.lora4j.ops;

import org.bytedeco.pytorch.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * Where the gradients of an adapter's factors are added.
 *
 * @param a gradient of A, shape (r, in), any type and strides; null if it is not wanted
 * @param b gradient of B, shape (out, r); null if it is not wanted
 */
public record LowRankGradient(@Nullable Tensor a, @Nullable Tensor b) {}
