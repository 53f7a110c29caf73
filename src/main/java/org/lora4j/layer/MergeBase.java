package org.lora4j.layer;

/** What adapters are merged into where the layer they were trained on is quantized. */
public enum MergeBase {
    /**
     * The weight that was quantized, in full precision: the best base model, but not the one the adapters have seen. What
     * they learned of the quantization error stays in the result.
     */
    ORIGINAL,
    /** What the quantized weight stands for, in full precision: exactly the model that was trained. */
    DEQUANTIZED,
    /** As DEQUANTIZED, then quantized again: small, but what the adapters add may be lost in the rounding. PEFT does this. */
    REQUANTIZED
}
