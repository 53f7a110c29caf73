package org.lora4j.layer;

import java.util.List;
import org.bytedeco.pytorch.Tensor;
import org.lora4j.ops.Ops;

/**
 * The adapters of a pool that each row of one batch uses: any one, several with factors, or none. Set on the thread of a
 * forward pass, it takes the place of the adapters the layers hold.
 *
 * <p>A row's result depends on that row and its adapters alone, not on the rest of the batch; a row without adapters gets
 * the base's bits.
 */
public final class PooledRows {
    private final PooledSet set;
    private final List<int[]> rounds;

    /**
     * @param set the adapters of all rows
     * @param rounds arrays with an element for each row: an index into the set's parts, or -1. A row with several adapters
     *     has one in each of several rounds; their updates are added in this order
     * @throws IllegalArgumentException if the arrays differ in length or an index is out of range
     */
    public PooledRows(PooledSet set, List<int[]> rounds) {
        this.set = set;
        this.rounds = List.copyOf(rounds);
        for (int[] round : rounds) {
            if (round.length != rounds.get(0).length) {
                throw new IllegalArgumentException("a round has " + round.length + " rows and another "
                        + rounds.get(0).length + ": each needs an element for every row of the batch");
            }
            for (int index : round) {
                if (index < -1 || index >= set.parts().size()) {
                    throw new IllegalArgumentException("a row has adapter " + index + " but the set has "
                            + set.parts().size() + ": use -1 for a row without one");
                }
            }
        }
    }

    /**
     * The output of a layer with the rows' updates.
     *
     * @param x the layer's input (rows, ..., in)
     * @param y the base's output, which may be changed in place
     */
    Tensor apply(LoraLayer layer, Tensor x, Tensor y) {
        if (rounds.isEmpty() || y.numel() == 0) {
            return y;
        }
        int rows = rounds.get(0).length;
        if (x.size(0) != rows) {
            throw new IllegalArgumentException("layer '" + layer.path() + "' got a batch of " + x.size(0)
                    + " rows, but adapters were given for " + rows + ": name them for each row of the batch");
        }
        PooledSet.Joined joined = set.at(layer.path());
        if (joined.table().size() == 0) {
            return y;
        }
        Tensor out = y.contiguous();
        Tensor flatOut = out.view(-1, out.size(-1));
        Tensor flatIn = x.reshape(-1, x.size(-1));
        int perRow = (int) (flatOut.size(0) / rows);
        for (int[] round : rounds) {
            int[] index = new int[rows * perRow];
            boolean any = false;
            for (int i = 0; i < index.length; i++) {
                int part = round[i / perRow];
                index[i] = part < 0 ? -1 : joined.slots()[part];
                any |= index[i] >= 0;
            }
            if (any) {
                Ops.current().lowRankUpdate(flatOut, flatIn, index, joined.table());
            }
        }
        return out;
    }
}
