package org.lora4j.serve;

/** Hears what a pool does, under the pool's lock: it must be quick. */
public interface PoolListener {
    PoolListener NONE = new PoolListener() {};

    /** An adapter was asked for; it is in memory, or its loading begins. */
    default void asked(AdapterEntry entry, boolean inMemory) {}

    /** An adapter is in memory. */
    default void loaded(AdapterEntry entry, long bytes, long nanos) {}

    /** An adapter made room for another. */
    default void evicted(AdapterEntry entry) {}

    /** An adapter could not be loaded. */
    default void failed(AdapterEntry entry) {}
}
