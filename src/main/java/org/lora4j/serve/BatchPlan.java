package org.lora4j.serve;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.lora4j.layer.PooledRows;
import org.lora4j.layer.PooledSet;

/**
 * Puts rows of different adapters into one batch: each row gets any one adapter, several with factors, or none.
 *
 * <p>A plan remembers the adapters of the last batch. As long as they stay the same, a further step costs nothing but the
 * rows. For one thread.
 */
public final class BatchPlan {
    /**
     * An adapter of a row.
     *
     * @param lease open until the batch is computed
     * @param factor multiplies the adapter's scale; 1 as trained
     */
    public record Part(Lease lease, double factor) {}

    private PooledSet set = new PooledSet(List.of());
    /** The parts of the set with their places in it. */
    private Map<PooledSet.Part, Integer> places = Map.of();

    /**
     * The adapters of a batch.
     *
     * @param rows for each row its adapters; none for the base
     */
    public PooledRows of(List<List<Part>> rows) {
        Map<PooledSet.Part, Integer> index = new LinkedHashMap<>();
        List<int[]> rounds = new ArrayList<>();
        for (int row = 0; row < rows.size(); row++) {
            List<Part> parts = rows.get(row);
            for (int i = 0; i < parts.size(); i++) {
                if (i == rounds.size()) {
                    int[] round = new int[rows.size()];
                    Arrays.fill(round, -1);
                    rounds.add(round);
                }
                PooledSet.Part part = new PooledSet.Part(
                        parts.get(i).lease().adapter(), parts.get(i).factor());
                rounds.get(i)[row] = index.computeIfAbsent(part, added -> index.size());
            }
        }
        if (!index.keySet().equals(places.keySet())) {
            set = new PooledSet(List.copyOf(index.keySet()));
            places = index;
        } else {
            rounds.forEach(round -> move(round, List.copyOf(index.keySet())));
        }
        if (rounds.isEmpty()) {
            // A round without adapters tells the layers that the rows have none of the base's either.
            int[] none = new int[rows.size()];
            Arrays.fill(none, -1);
            rounds.add(none);
        }
        return new PooledRows(set, rounds);
    }

    /** From places in the order of this batch to those in the set. */
    private void move(int[] round, List<PooledSet.Part> parts) {
        for (int row = 0; row < round.length; row++) {
            if (round[row] >= 0) {
                round[row] = places.getOrDefault(parts.get(round[row]), -1);
            }
        }
    }
}
