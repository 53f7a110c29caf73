package org.lora4j.serve;

import java.time.Duration;

/**
 * The limits of an engine.
 *
 * @param maxSequences requests computed together, at least 1
 * @param maxBatchTokens tokens of one step, prompts and continuations together; at least {@code maxSequences}
 * @param pageTokens tokens of a page of the cache
 * @param pages pages of the cache: together they hold the tokens of all requests that run, and the prefixes kept for others
 * @param maxTokens most tokens of a request, prompt and continuation together
 * @param maxWaiting requests that may wait; further ones are refused
 * @param waitLimit how long a request may wait before it fails
 * @param maxShare most of the {@code maxSequences} that requests of one adapter may have, in (0, 1]
 * @param prefixCache whether to keep the pages of prompts for later ones that begin alike
 */
public record EngineOptions(
        int maxSequences,
        int maxBatchTokens,
        int pageTokens,
        int pages,
        int maxTokens,
        int maxWaiting,
        Duration waitLimit,
        double maxShare,
        boolean prefixCache) {
    public EngineOptions {
        PoolOptions.require(maxSequences >= 1, "maxSequences", maxSequences, "at least 1");
        PoolOptions.require(maxBatchTokens >= maxSequences, "maxBatchTokens", maxBatchTokens, "at least maxSequences");
        PoolOptions.require(pageTokens >= 1, "pageTokens", pageTokens, "at least 1");
        PoolOptions.require(pages >= 1, "pages", pages, "at least 1");
        PoolOptions.require(maxTokens >= 2, "maxTokens", maxTokens, "at least 2");
        PoolOptions.require(
                (long) pages * pageTokens >= maxTokens,
                "pages",
                pages,
                "enough for one request of maxTokens (" + maxTokens + ") tokens");
        PoolOptions.require(maxWaiting >= 1, "maxWaiting", maxWaiting, "at least 1");
        PoolOptions.require(maxShare > 0 && maxShare <= 1, "maxShare", maxShare, "greater than 0 and at most 1");
    }

    /** 64 requests at once, with room for each to have {@code maxTokens} tokens. */
    public static EngineOptions of(int maxTokens) {
        int pagesEach = (maxTokens + 15) / 16;
        return new EngineOptions(64, 512, 16, 64 * pagesEach, maxTokens, 1024, Duration.ofMinutes(1), 0.75, true);
    }

    public EngineOptions withMaxSequences(int value) {
        return new EngineOptions(
                value, maxBatchTokens, pageTokens, pages, maxTokens, maxWaiting, waitLimit, maxShare, prefixCache);
    }

    public EngineOptions withMaxBatchTokens(int value) {
        return new EngineOptions(
                maxSequences, value, pageTokens, pages, maxTokens, maxWaiting, waitLimit, maxShare, prefixCache);
    }

    public EngineOptions withPages(int count, int tokens) {
        return new EngineOptions(
                maxSequences, maxBatchTokens, tokens, count, maxTokens, maxWaiting, waitLimit, maxShare, prefixCache);
    }

    public EngineOptions withMaxWaiting(int value) {
        return new EngineOptions(
                maxSequences, maxBatchTokens, pageTokens, pages, maxTokens, value, waitLimit, maxShare, prefixCache);
    }

    public EngineOptions withWaitLimit(Duration value) {
        return new EngineOptions(
                maxSequences, maxBatchTokens, pageTokens, pages, maxTokens, maxWaiting, value, maxShare, prefixCache);
    }

    public EngineOptions withPrefixCache(boolean value) {
        return new EngineOptions(
                maxSequences, maxBatchTokens, pageTokens, pages, maxTokens, maxWaiting, waitLimit, maxShare, value);
    }
}
