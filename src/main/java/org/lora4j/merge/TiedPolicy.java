package org.lora4j.merge;

/** What to do when an adapter changes one of two tensors that the model ties: the embedding and the output layer. */
public enum TiedPolicy {
    /** Refuse, since either answer below may be the one that is wanted. */
    REFUSE,
    /** Write an output layer of its own and say so in {@code config.json}: what the adapted model computes. */
    UNTIE,
    /** Change both, as PEFT's merge does: smaller, but not what the adapted model computes. */
    BOTH
}
