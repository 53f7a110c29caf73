package org.lora4j.combine;

/** How the sign of an element is elected: PEFT's {@code majority_sign_method}. */
public enum MajoritySign {
    /** By the sum of the values. */
    TOTAL,
    /** By the number of values. */
    FREQUENCY
}
