package org.lora4j.serve;

import java.util.concurrent.atomic.AtomicBoolean;
import org.lora4j.layer.PooledAdapter;

/** The right to use an adapter's weights, which stay as they are until it is closed, whatever happens to the name. */
public final class Lease implements AutoCloseable {
    private final AdapterId id;
    private final PooledAdapter adapter;
    private final Runnable release;
    private final AtomicBoolean closed = new AtomicBoolean();

    Lease(AdapterId id, PooledAdapter adapter, Runnable release) {
        this.id = id;
        this.adapter = adapter;
        this.release = release;
    }

    /** Which weights these are. */
    public AdapterId id() {
        return id;
    }

    /**
     * The weights.
     *
     * @throws IllegalStateException if the lease is closed: they may be gone
     */
    public PooledAdapter adapter() {
        if (closed.get()) {
            throw new IllegalStateException("the lease of adapter " + id + " is closed: acquire it anew");
        }
        return adapter;
    }

    /** Gives the right back; once is enough, more does nothing. */
    @Override
    public void close() {
        if (closed.compareAndSet(false, true)) {
            release.run();
        }
    }
}
