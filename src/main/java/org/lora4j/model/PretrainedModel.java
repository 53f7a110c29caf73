package org.lora4j.model;

/** A model that says which kind of checkpoint it is; adapters without targets then get PEFT's defaults for it. */
public interface PretrainedModel {
    /** The {@code model_type} in the {@code config.json} of the checkpoint, such as {@code llama}. */
    String modelType();
}
