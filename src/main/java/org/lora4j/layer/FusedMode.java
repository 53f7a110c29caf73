package org.lora4j.layer;

/** How linear layers compute their updates while gradients are recorded. */
public enum FusedMode {
    /** In one step with the frozen layer where that is sound, with plain autograd elsewhere. The default. */
    AUTO,
    /** As {@link #AUTO}, but a layer that would fall back to plain autograd is an error that says why. */
    REQUIRED,
    /** With plain autograd everywhere. */
    OFF
}
