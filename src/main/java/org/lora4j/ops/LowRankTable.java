package org.lora4j.ops;

import java.util.ArrayList;
import java.util.List;

/**
 * Updates of one layer that are checked and described once, for any number of calls of
 * {@link LoraOps#lowRankUpdate(org.bytedeco.pytorch.Tensor, org.bytedeco.pytorch.Tensor, int[], LowRankTable)}. A step over
 * many adapters costs no look at their factors.
 *
 * <p>The factors must stay open and where they are while the table is in use, and share memory with no output.
 */
public final class LowRankTable {
    private static final LowRankTable EMPTY = new LowRankTable(List.of(), new long[0], 0, 0);

    private final List<LowRank> updates;
    /** What the native library needs to know of them. */
    private final long[] fields;

    private final long in;
    private final long out;

    private LowRankTable(List<LowRank> updates, long[] fields, long in, long out) {
        this.updates = updates;
        this.fields = fields;
        this.in = in;
        this.out = out;
    }

    /**
     * A table of one update.
     *
     * @throws IllegalArgumentException if a factor is not float32, bfloat16 or float16, or the scale is not finite
     */
    public static LowRankTable of(LowRank update) {
        Checks.factors("update", update);
        return new LowRankTable(List.of(update), NativeOps.lowRanks(List.of(update)), update.in(), update.out());
    }

    /**
     * The updates of several tables, in their order.
     *
     * @throws IllegalArgumentException if they are of layers of different sizes
     */
    public static LowRankTable join(List<LowRankTable> tables) {
        if (tables.isEmpty()) {
            return EMPTY;
        }
        LowRankTable first = tables.get(0);
        if (tables.size() == 1) {
            return first;
        }
        List<LowRank> updates = new ArrayList<>(tables.size());
        int length = 0;
        for (LowRankTable table : tables) {
            if (table.in != first.in || table.out != first.out) {
                throw new IllegalArgumentException("an update maps " + table.in + " to " + table.out
                        + " features and another " + first.in + " to " + first.out
                        + ": join the updates of one layer");
            }
            updates.addAll(table.updates);
            length += table.fields.length;
        }
        long[] fields = new long[length];
        int at = 0;
        for (LowRankTable table : tables) {
            System.arraycopy(table.fields, 0, fields, at, table.fields.length);
            at += table.fields.length;
        }
        return new LowRankTable(List.copyOf(updates), fields, first.in, first.out);
    }

    /** The same updates with their scales multiplied by a factor, on the same factors A and B. */
    public LowRankTable times(double factor) {
        List<LowRank> scaled = updates.stream()
                .map(each -> new LowRank(each.a(), each.b(), each.scale() * factor))
                .toList();
        scaled.forEach(each -> Checks.scale("update", each));
        long[] changed = fields.clone();
        for (int i = 0; i < scaled.size(); i++) {
            NativeOps.putScale(changed, i, scaled.get(i).scale());
        }
        return new LowRankTable(scaled, changed, in, out);
    }

    /** How many updates there are. */
    public int size() {
        return updates.size();
    }

    /** The updates themselves. */
    public List<LowRank> updates() {
        return updates;
    }

    long[] fields() {
        return fields;
    }

    long in() {
        return in;
    }

    long out() {
        return out;
    }
}
