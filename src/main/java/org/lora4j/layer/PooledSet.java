package org.lora4j.layer;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.lora4j.ops.LowRankTable;

/**
 * Some adapters of a pool, each with a factor, ready to be used together in batches. Made once for all the steps that use
 * the same ones: what the layers need is put together at the first step. For one thread at a time.
 */
public final class PooledSet {
    /**
     * A part of what a row adds to the base.
     *
     * @param adapter open as long as the set is used
     * @param factor multiplies the adapter's scale; finite
     */
    public record Part(PooledAdapter adapter, double factor) {
        public Part {
            if (!Double.isFinite(factor)) {
                throw new IllegalArgumentException(
                        "the factor of an adapter is " + factor + " but must be finite; 1 is the adapter as trained");
            }
        }
    }

    /**
     * What a layer needs.
     *
     * @param table the updates of those adapters that have one here
     * @param slots for each part its place in the table, or -1
     */
    record Joined(LowRankTable table, int[] slots) {}

    private final List<Part> parts;
    private final Map<String, Joined> joined = new HashMap<>();

    public PooledSet(List<Part> parts) {
        this.parts = List.copyOf(parts);
    }

    /** The adapters with their factors. */
    public List<Part> parts() {
        return parts;
    }

    Joined at(String path) {
        return joined.computeIfAbsent(path, this::join);
    }

    private Joined join(String path) {
        int[] slots = new int[parts.size()];
        Arrays.fill(slots, -1);
        List<LowRankTable> tables = new ArrayList<>();
        for (int i = 0; i < slots.length; i++) {
            LowRankTable table = parts.get(i).adapter().at(path);
            if (table != null) {
                slots[i] = tables.size();
                tables.add(
                        parts.get(i).factor() == 1
                                ? table
                                : table.times(parts.get(i).factor()));
            }
        }
        return new Joined(LowRankTable.join(tables), slots);
    }
}
