package org.lora4j.serve;

/** Why a continuation ended. */
public enum FinishReason {
    /** The end token came. */
    STOP,
    /** It has as many tokens as were asked for. */
    LENGTH,
    /** It was cancelled. */
    CANCELLED
}
