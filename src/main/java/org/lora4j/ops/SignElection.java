package org.lora4j.ops;

/**
 * How a combination elects the sign of each element (TIES, arXiv:2306.01708). Tensors of another sign there are left out,
 * and the sum of the others is divided by their number.
 */
public enum SignElection {
    /** None: a plain weighted sum. */
    NONE,
    /** The sign of the sum, without weights; positive if it is 0. PEFT calls it "total". */
    TOTAL,
    /** The sign more tensors have; positive if as many have either. PEFT calls it "frequency". */
    FREQUENCY
}
