package org.lora4j.serve;

import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/**
 * Requests that wait, in a queue for each adapter. The adapter that was served the fewest tokens comes first, so that no
 * adapter starves another, however many requests it has; one that comes after a pause does not make up for it. For one
 * thread.
 */
final class WaitingRequests {
    private final Map<List<AdapterUse>, ArrayDeque<Sequence>> queues = new LinkedHashMap<>();
    private final Map<List<AdapterUse>, Long> served = new HashMap<>();
    private int size;

    int size() {
        return size;
    }

    /** @param running the adapters being served now */
    void add(Sequence sequence, Iterable<Sequence> running) {
        List<AdapterUse> group = sequence.group();
        if (!queues.containsKey(group)) {
            long least = Long.MAX_VALUE;
            for (List<AdapterUse> other : queues.keySet()) {
                least = Math.min(least, served.getOrDefault(other, 0L));
            }
            for (Sequence other : running) {
                least = Math.min(least, served.getOrDefault(other.group(), 0L));
            }
            if (least != Long.MAX_VALUE) {
                served.merge(group, least, Math::max);
            }
            queues.put(group, new ArrayDeque<>());
        }
        queues.get(group).add(sequence);
        size++;
    }

    /** Counts tokens computed for an adapter. */
    void serve(Sequence sequence, int tokens) {
        served.merge(sequence.group(), (long) tokens, Long::sum);
    }

    /** How many tokens an adapter was served, to order by. */
    long served(Sequence sequence) {
        return served.getOrDefault(sequence.group(), 0L);
    }

    /** The first request of each adapter, in the order in which they are to be served. */
    List<Sequence> heads() {
        List<Sequence> heads = new ArrayList<>();
        queues.values().forEach(queue -> heads.add(queue.element()));
        heads.sort(Comparator.comparingLong(this::served).thenComparingLong(each -> each.arrived));
        return heads;
    }

    /** All requests. */
    List<Sequence> all() {
        return queues.values().stream().flatMap(ArrayDeque::stream).toList();
    }

    void remove(Sequence sequence) {
        @Nullable ArrayDeque<Sequence> queue = queues.get(sequence.group());
        if (queue != null && queue.remove(sequence)) {
            size--;
            if (queue.isEmpty()) {
                queues.remove(sequence.group());
            }
        }
    }

    /** Forgets what idle adapters were served: they begin with the others' least when they come back. */
    void forgetIdle(Iterable<Sequence> running) {
        if (served.size() > 4096) {
            List<List<AdapterUse>> busy = new ArrayList<>(queues.keySet());
            running.forEach(each -> busy.add(each.group()));
            served.keySet().retainAll(busy);
        }
    }
}
