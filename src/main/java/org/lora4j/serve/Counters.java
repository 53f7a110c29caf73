package org.lora4j.serve;

import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentHashMap;

/** Counts what the engine does. Written by its thread alone. */
final class Counters {
    /** Names that are counted on their own: metrics must not grow with the number of adapters. */
    static final int MOST_ADAPTERS = 256;

    private static final class Tally {
        volatile long requests;
        volatile long running;
        volatile long waiting;
        volatile long generated;
    }

    private final Map<String, Tally> adapters = new ConcurrentHashMap<>();
    volatile int running;
    volatile int waiting;
    volatile long failed;
    volatile long cancelled;
    private volatile long requests;
    private volatile long promptTokens;
    private volatile long cachedTokens;
    private volatile long generated;
    private volatile long steps;
    private volatile long stepNanos;

    private Tally of(Sequence sequence) {
        List<AdapterUse> uses = sequence.request.adapters();
        String name = uses.isEmpty()
                ? EngineStats.BASE
                : String.join("+", uses.stream().map(AdapterUse::name).toList());
        Tally tally = adapters.get(name);
        if (tally == null) {
            tally = adapters.computeIfAbsent(
                    adapters.size() < MOST_ADAPTERS ? name : EngineStats.OTHER, absent -> new Tally());
        }
        return tally;
    }

    @SuppressWarnings("NonAtomicOperationOnVolatileField") // one thread writes
    void waits(Sequence sequence, boolean begins) {
        of(sequence).waiting += begins ? 1 : -1;
    }

    @SuppressWarnings("NonAtomicOperationOnVolatileField") // one thread writes
    void begun(Sequence sequence) {
        Tally tally = of(sequence);
        sequence.counted = true;
        tally.requests++;
        tally.running++;
        requests++;
        cachedTokens += sequence.computed;
    }

    @SuppressWarnings("NonAtomicOperationOnVolatileField") // one thread writes
    void ended(Sequence sequence) {
        if (sequence.counted) {
            of(sequence).running--;
            sequence.counted = false;
        }
    }

    @SuppressWarnings("NonAtomicOperationOnVolatileField") // one thread writes
    void step(long nanos, List<EngineStep.Work> works) {
        steps++;
        stepNanos += nanos;
        for (EngineStep.Work work : works) {
            if (work.result != null) {
                generated++;
                of(work.sequence()).generated++;
            }
            if (!work.decodes()) {
                promptTokens += work.count();
            }
        }
    }

    EngineStats stats(EngineOptions options, PagePool pages) {
        Map<String, EngineStats.Use> uses = new TreeMap<>();
        adapters.forEach((name, tally) ->
                uses.put(name, new EngineStats.Use(tally.requests, tally.running, tally.waiting, tally.generated)));
        return new EngineStats(
                running,
                waiting,
                options.pages(),
                pages.reserved(),
                pages.idle(),
                requests,
                failed,
                cancelled,
                promptTokens,
                cachedTokens,
                generated,
                steps,
                stepNanos,
                uses);
    }
}
