package org.lora4j.train;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Random;

/** Deals out samples batch by batch, in a new seeded order each time round. */
final class BatchOrder {
    private final List<Sample> samples;
    private final int batchSize;
    private final Random random;
    private List<Sample> order = List.of();
    private int next;

    BatchOrder(List<Sample> samples, int batchSize, long seed) {
        this.samples = samples;
        this.batchSize = batchSize;
        this.random = new Random(seed);
    }

    /** The next batch. The last one of a round may be smaller. */
    List<Sample> next() {
        if (next == order.size()) {
            order = new ArrayList<>(samples);
            Collections.shuffle(order, random);
            next = 0;
        }
        int from = next;
        next = Math.min(from + batchSize, order.size());
        return order.subList(from, next);
    }
}
