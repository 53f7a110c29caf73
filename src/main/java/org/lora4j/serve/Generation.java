package org.lora4j.serve;

/** A request on its way. */
public interface Generation {
    /** Ends it soon; what it holds is freed. Does nothing if it has ended. */
    void cancel();
}
