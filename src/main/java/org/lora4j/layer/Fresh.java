package org.lora4j.layer;

import org.bytedeco.pytorch.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * A new adapter at one layer.
 *
 * @param residual the base weight beside it, in the layer's own layout, where the initialisation moves a part of the
 *     weight into the factors; null where the base stays
 */
public record Fresh(LoraWeights weights, @Nullable Tensor residual) {}
