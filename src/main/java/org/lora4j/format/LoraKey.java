package org.lora4j.format;

/**
 * What the name of a tensor says.
 *
 * @param key the name
 * @param part the part of a pipeline it belongs to as the file spells it, such as {@code lora_unet} or
 *     {@code text_encoder}; may be empty
 * @param module the adapted module in that part; with underscores for dots in kohya's layout
 * @param role what the tensor is to the module
 */
record LoraKey(String key, String part, String module, Role role) {
    /** The tensors of one adapted module. */
    enum Role {
        /** The factor from the module's inputs to the rank. */
        A,
        /** The factor from the rank to the module's outputs. */
        B,
        /** A bias of B. */
        B_BIAS,
        /** The numerator of the scale. */
        ALPHA,
        /** DoRA's magnitudes. */
        MAGNITUDE,
        /** A third factor between A and B, of a Tucker decomposition. */
        MIDDLE
    }
}
