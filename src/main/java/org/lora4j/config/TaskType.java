package org.lora4j.config;

/** The tasks PEFT knows; each name is also the value in {@code adapter_config.json}. */
public enum TaskType {
    SEQ_CLS,
    SEQ_2_SEQ_LM,
    CAUSAL_LM,
    TOKEN_CLS,
    QUESTION_ANS,
    FEATURE_EXTRACTION
}
