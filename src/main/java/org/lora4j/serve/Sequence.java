package org.lora4j.serve;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** A request in the engine: waiting, then running. Belongs to the engine's thread but for {@link #cancel}. */
final class Sequence implements Generation {
    final GenerationRequest request;
    final TokenSink sink;
    final long arrived = System.nanoTime();
    final List<Lease> leases = new ArrayList<>();
    final List<BatchPlan.Part> parts = new ArrayList<>();
    final List<Integer> pages = new ArrayList<>();
    final TokenSampler sampler;
    private final Runnable wake;
    volatile boolean cancelled;

    /** Prompt and continuation. */
    long[] tokens;

    int length;
    /** How many of the tokens are in the cache. */
    int computed;

    int reserved;
    /** Whether the counters know it as running. */
    boolean counted;
    /** What the tokens are computed with, for the prefix cache. */
    Object root = List.of();

    Sequence(GenerationRequest request, TokenSink sink, Runnable wake) {
        this.request = request;
        this.sink = sink;
        this.wake = wake;
        this.sampler = new TokenSampler(request.sampling());
        this.tokens = request.prompt().clone();
        this.length = tokens.length;
    }

    @Override
    public void cancel() {
        cancelled = true;
        wake.run();
    }

    /** The adapters' names with their factors: requests of the same take turns as one. */
    List<AdapterUse> group() {
        return request.adapters();
    }

    int added() {
        return length - request.prompt().length;
    }

    /** Whether the next pass gives a new token. */
    boolean decodes() {
        return computed == length - 1 && added() > 0;
    }

    void add(long token) {
        if (length == tokens.length) {
            tokens = Arrays.copyOf(tokens, Math.max(16, 2 * length));
        }
        tokens[length++] = token;
    }

    int mostTokens() {
        return request.prompt().length + request.sampling().maxTokens();
    }

    int[] pageArray() {
        return pages.stream().mapToInt(Integer::intValue).toArray();
    }
}
