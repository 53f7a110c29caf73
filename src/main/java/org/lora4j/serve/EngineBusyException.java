package org.lora4j.serve;

/** Too many requests wait already, or the engine is stopping. */
public final class EngineBusyException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    private final boolean stopping;

    private EngineBusyException(String message, boolean stopping) {
        super(message);
        this.stopping = stopping;
    }

    static EngineBusyException full(String message) {
        return new EngineBusyException(message, false);
    }

    static EngineBusyException stopped() {
        return new EngineBusyException("the server is shutting down: ask another one", true);
    }

    /** Whether it is no use to ask this engine again. */
    public boolean isStopping() {
        return stopping;
    }
}
