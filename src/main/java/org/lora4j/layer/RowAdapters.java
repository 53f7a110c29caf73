package org.lora4j.layer;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.lora4j.ops.LowRank;

/** The adapter of every row of one batch. */
public final class RowAdapters {
    /** PEFT's name for a row without adapter. */
    public static final String BASE = "__base__";

    private final List<String> distinct = new ArrayList<>();
    private final int[] adapterOfRow;

    /** @param names an adapter or {@link #BASE} for each row of the batch */
    public RowAdapters(List<String> names) {
        adapterOfRow = new int[names.size()];
        for (int i = 0; i < adapterOfRow.length; i++) {
            adapterOfRow[i] = indexOf(names.get(i));
        }
    }

    private int indexOf(String name) {
        if (name.equals(BASE)) {
            return -1;
        }
        int known = distinct.indexOf(name);
        if (known < 0) {
            distinct.add(name);
            return distinct.size() - 1;
        }
        return known;
    }

    /** The adapters used, each once, in order of appearance. */
    List<String> distinct() {
        return distinct;
    }

    /** The rows of the batch that use an adapter. */
    long[] rowsOf(String name) {
        int index = distinct.indexOf(name);
        List<Long> rows = new ArrayList<>();
        for (int i = 0; i < adapterOfRow.length; i++) {
            if (adapterOfRow[i] == index) {
                rows.add((long) i);
            }
        }
        return rows.stream().mapToLong(Long::longValue).toArray();
    }

    /**
     * The runs of consecutive vectors with one adapter, adapter by adapter.
     *
     * @param weights the layer's adapters by name; rows whose adapter is not among them are in no run
     * @param perRow how many consecutive vectors each row of the batch has
     */
    List<FusedLinear.Segment> segments(Map<String, LoraWeights> weights, long perRow) {
        List<FusedLinear.Segment> segments = new ArrayList<>();
        for (int adapter = 0; adapter < distinct.size(); adapter++) {
            String name = distinct.get(adapter);
            LoraWeights found = weights.get(name);
            for (int from = 0; found != null && from < adapterOfRow.length; ) {
                int to = from;
                while (to < adapterOfRow.length && adapterOfRow[to] == adapter) {
                    to++;
                }
                if (to > from) {
                    segments.add(new FusedLinear.Segment(
                            List.of(found), List.of(name), from * perRow, (to - from) * perRow));
                }
                from = Math.max(to, from + 1);
            }
        }
        return segments;
    }

    void checkBatch(String path, long batch) {
        if (batch != adapterOfRow.length) {
            throw new IllegalArgumentException(
                    "layer '" + path + "' got a batch of " + batch + " rows, but rows(...) named " + adapterOfRow.length
                            + " adapters: name one adapter, or \"" + BASE + "\", for each row");
        }
    }

    /**
     * Collects what a layer needs for {@code lowRankUpdate}.
     *
     * @param weights the layer's adapters by name; a row whose adapter is not among them gets no update
     * @param perRow how many consecutive vectors each row of the batch has, for example tokens
     * @param table receives the updates the result points into
     * @return an index into {@code table}, or -1, for each of batch * perRow vectors
     */
    int[] index(Map<String, LoraWeights> weights, int perRow, List<LowRank> table) {
        int[] slot = new int[distinct.size()];
        for (int i = 0; i < slot.length; i++) {
            LoraWeights found = weights.get(distinct.get(i));
            slot[i] = found == null ? -1 : table.size();
            if (found != null) {
                table.add(found.lowRank());
            }
        }
        int[] index = new int[adapterOfRow.length * perRow];
        for (int i = 0; i < index.length; i++) {
            int adapter = adapterOfRow[i / perRow];
            index[i] = adapter < 0 ? -1 : slot[adapter];
        }
        return index;
    }
}
