package org.lora4j.serve;

/** An adapter a request needs cannot be loaded. */
public final class AdapterFailedException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    AdapterFailedException(String message) {
        super(message);
    }
}
