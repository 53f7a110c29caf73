package org.lora4j.serve;

import java.util.Map;

/**
 * What an engine does and has done.
 *
 * @param running requests being computed
 * @param waiting requests that wait
 * @param pages pages of the cache
 * @param reservedPages pages promised to running requests
 * @param idlePages pages kept for prompts that begin alike
 * @param requests requests begun
 * @param failed requests that failed
 * @param cancelled requests that were cancelled
 * @param promptTokens tokens of prompts computed
 * @param cachedTokens tokens of prompts found in the prefix cache
 * @param generatedTokens tokens added
 * @param steps steps computed
 * @param stepNanos time of all steps together
 * @param adapters by adapter: requests begun, running and waiting, and tokens added. Of the first 256 names; further
 *     ones count as {@value #OTHER}
 */
public record EngineStats(
        int running,
        int waiting,
        int pages,
        int reservedPages,
        int idlePages,
        long requests,
        long failed,
        long cancelled,
        long promptTokens,
        long cachedTokens,
        long generatedTokens,
        long steps,
        long stepNanos,
        Map<String, Use> adapters) {
    /** Stands for requests without adapter. */
    public static final String BASE = "(base)";

    /** Stands for the names beyond those counted on their own. */
    public static final String OTHER = "(other)";

    /** What requests of one adapter came to. */
    public record Use(long requests, long running, long waiting, long generatedTokens) {}
}
