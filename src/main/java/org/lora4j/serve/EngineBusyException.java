package org.lora4j.serve;

/** Too many requests wait already. */
public final class EngineBusyException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    EngineBusyException(String message) {
        super(message);
    }
}
