package org.lora4j.serve;

/**
 * The limits of a pool.
 *
 * @param bytes bytes of adapters on the device
 * @param hostBytes bytes of adapters kept in host memory beside, so that one that was evicted need not be read and checked
 *     again; 0 for none. On the CPU an adapter in both places takes its memory once
 * @param loaders threads that read adapters, at least 1
 */
public record PoolOptions(long bytes, long hostBytes, int loaders) {
    public PoolOptions {
        require(bytes >= 1, "bytes", bytes, "at least 1");
        require(hostBytes >= 0, "hostBytes", hostBytes, "at least 0");
        require(loaders >= 1, "loaders", loaders, "at least 1");
    }

    /** A pool of some bytes with one loader and nothing kept in host memory. */
    public static PoolOptions of(long bytes) {
        return new PoolOptions(bytes, 0, 1);
    }

    public PoolOptions withHostBytes(long value) {
        return new PoolOptions(bytes, value, loaders);
    }

    public PoolOptions withLoaders(int value) {
        return new PoolOptions(bytes, hostBytes, value);
    }

    static void require(boolean ok, String field, Object value, String rule) {
        if (!ok) {
            throw new IllegalArgumentException(field + " is " + value + " but must be " + rule);
        }
    }
}
