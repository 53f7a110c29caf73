package org.lora4j.config;

/** Which biases of the base model train and are saved with an adapter. */
public enum BiasMode {
    /** No bias trains. */
    NONE,
    /** Every bias of the base model trains. */
    ALL,
    /** The biases of the layers that carry the adapter train. */
    LORA_ONLY;

    /** The value in {@code adapter_config.json}, such as {@code lora_only}. */
    public String jsonName() {
        return name().toLowerCase(java.util.Locale.ROOT);
    }
}
