package org.lora4j.serve;

import java.util.List;
import java.util.concurrent.CompletableFuture;

/** The answer of a pool that is asked for an adapter. It never waits. */
public sealed interface Acquisition {
    /**
     * The adapter is in memory.
     *
     * @param lease keeps it there until it is closed
     */
    record Ready(Lease lease) implements Acquisition {}

    /**
     * The adapter is being loaded.
     *
     * @param done completes, always normally, when it is worth asking again
     */
    record Loading(CompletableFuture<Void> done) implements Acquisition {}

    /**
     * There is no room and nothing can be evicted: all other adapters are in use, pinned or being loaded.
     *
     * @param name the adapter asked for
     * @param needed bytes it takes
     * @param free bytes that are free
     * @param budget bytes of the pool
     * @param held the adapters that hold the rest
     */
    record AtCapacity(String name, long needed, long free, long budget, List<String> held) implements Acquisition {
        private static final int MOST_NAMES = 8;

        /** What is wrong and what to do. */
        public String message() {
            String named = held.size() <= MOST_NAMES
                    ? held.toString()
                    : held.subList(0, MOST_NAMES) + " and " + (held.size() - MOST_NAMES) + " more";
            return "adapter \"" + name + "\" needs " + needed + " bytes, but of the pool's " + budget + " only " + free
                    + " are free and nothing can be evicted: " + named
                    + " are in use, pinned or loading; wait for them, unpin one or make the pool larger";
        }
    }

    /**
     * The adapter cannot be loaded, or not yet again after it failed.
     *
     * @param name the adapter asked for
     * @param reason what was wrong with it
     */
    record Failed(String name, String reason) implements Acquisition {
        /** What is wrong and what to do. */
        public String message() {
            return "adapter \"" + name + "\" cannot be loaded: " + reason;
        }
    }
}
