package org.lora4j.layer;

import org.bytedeco.pytorch.Tensor;

/**
 * The factors of one layer, with the shapes {@link LoraWeights} describes. The handles belong to the caller, or to its
 * {@code PointerScope}.
 */
public record Factors(Tensor a, Tensor b) {}
