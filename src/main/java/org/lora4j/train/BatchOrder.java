package org.lora4j.train;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Random;

/** Deals out examples batch by batch, in a new seeded order each time round. */
final class BatchOrder<T> {
    private final List<T> examples;
    private final int batchSize;
    private final Random random;
    private List<Integer> order = List.of();
    private int next;

    BatchOrder(List<T> examples, int batchSize, long seed) {
        this.examples = examples;
        this.batchSize = batchSize;
        this.random = new Random(seed);
    }

    /** The next batch. The last one of a round may be smaller. */
    List<T> next() {
        return advance().stream().map(index -> examples.get(index)).toList();
    }

    private List<Integer> advance() {
        if (next == order.size()) {
            order = new ArrayList<>(examples.size());
            for (int i = 0; i < examples.size(); i++) {
                order.add(i);
            }
            Collections.shuffle(order, random);
            next = 0;
        }
        int from = next;
        next = Math.min(from + batchSize, order.size());
        return order.subList(from, next);
    }

    /** Leaves out batches, as a run does that goes on after them. */
    void skip(int batches) {
        for (int i = 0; i < batches; i++) {
            advance();
        }
    }
}
