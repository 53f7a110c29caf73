package org.lora4j.serve;

/**
 * What a pool holds and has done.
 *
 * @param budget bytes it may use
 * @param used bytes it uses, with what is being loaded and old versions still in use
 * @param resident adapters in memory
 * @param leased of those, how many are in use
 * @param pinned of those, how many are pinned
 * @param loading adapters being loaded
 * @param hostUsed bytes of adapters kept in host memory
 * @param hits acquisitions answered by an adapter in memory
 * @param misses acquisitions that began to load one
 * @param hostHits loads answered from host memory
 * @param loads adapters loaded
 * @param failures adapters that could not be loaded
 * @param evictions adapters evicted for others
 * @param loadedBytes bytes loaded
 * @param loadNanos time spent loading, all together
 */
public record PoolStats(
        long budget,
        long used,
        int resident,
        int leased,
        int pinned,
        int loading,
        long hostUsed,
        long hits,
        long misses,
        long hostHits,
        long loads,
        long failures,
        long evictions,
        long loadedBytes,
        long loadNanos) {}
