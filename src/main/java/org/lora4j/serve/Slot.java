package org.lora4j.serve;

import java.util.concurrent.CompletableFuture;
import org.jspecify.annotations.Nullable;
import org.lora4j.layer.PooledAdapter;

/** One version of an adapter in a pool. Guarded by the pool's lock. */
final class Slot {
    final AdapterEntry entry;
    final CompletableFuture<Void> done = new CompletableFuture<>();

    /** The weights, once they are there. */
    @Nullable
    PooledAdapter adapter;

    @Nullable
    AdapterId id;

    /** Bytes reserved in the pool's budget. */
    long bytes;

    int leases;
    long lastUsed;
    /** Whether to free it with the last lease: its name means another version, or nothing, by now. */
    boolean retired;

    Slot(AdapterEntry entry) {
        this.entry = entry;
    }

    boolean isLoaded() {
        return adapter != null;
    }
}
