package org.lora4j.model;

import org.bytedeco.pytorch.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * One batch of the data an initialisation looks at: {@code eva} and {@code corda} at the inputs of the layers, {@code
 * lora_ga} at the gradients of their weights.
 */
@FunctionalInterface
public interface CalibrationBatch {
    /** Runs the base model on the batch; for {@code lora_ga} also computes the loss and calls {@code backward()} on it. */
    void run();

    /** The positions that count, (batch, tokens), nonzero where they do; null for all. EVA leaves out padding and prompts. */
    default @Nullable Tensor mask() {
        return null;
    }
}
