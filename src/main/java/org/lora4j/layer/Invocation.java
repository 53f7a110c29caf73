package org.lora4j.layer;

import java.util.Arrays;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.bytedeco.javacpp.LongPointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.jspecify.annotations.Nullable;
import org.lora4j.ops.Tensors;

/**
 * From which token of each row on an activated LoRA (aLoRA, arXiv:2504.12397) applies: from the last occurrence of its
 * invocation tokens, those included. Counted from the end of the row, so that it holds for a later pass over fewer tokens
 * too, as with a cache; a row without the tokens is not reached at all.
 */
public final class Invocation {
    private final Map<List<Integer>, int[]> reach = new HashMap<>();
    private final int rows;

    /**
     * Looks for invocation tokens.
     *
     * @param invocations the tokens of each adapter that has some
     * @param inputIds int64 (B, T); negative ids, as for padding, match nothing
     * @param before what was found in the tokens these follow, or null if they are the first: a row without the tokens goes
     *     on as it was
     * @throws IllegalArgumentException if the ids are not int64 (B, T), or of another batch than those before
     */
    public Invocation(Collection<List<Integer>> invocations, Tensor inputIds, @Nullable Invocation before) {
        if (inputIds.dim() != 2 || Tensors.type(inputIds) != torch.ScalarType.Long) {
            throw new IllegalArgumentException("inputIds must be Long[B, T], but is " + Tensors.describe(inputIds)
                    + ": pass the token ids of the rows");
        }
        rows = (int) inputIds.size(0);
        int tokens = (int) inputIds.size(1);
        if (before != null && before.rows != rows) {
            throw new IllegalArgumentException("inputIds has " + rows + " rows, but the tokens before had "
                    + before.rows + ": go on with the same batch, or begin a new one");
        }
        long[] ids = new long[rows * tokens];
        try (PointerScope scope = new PointerScope()) {
            new LongPointer(inputIds.cpu().contiguous().data_ptr_long()).get(ids);
        }
        for (List<Integer> invocation : invocations) {
            int[] found = new int[rows];
            int[] earlier = before == null ? null : before.reach.get(invocation);
            for (int row = 0; row < rows; row++) {
                int start = last(ids, row * tokens, (row + 1) * tokens, invocation);
                if (start >= 0) {
                    found[row] = (row + 1) * tokens - start;
                } else if (earlier != null && earlier[row] > 0) {
                    found[row] = earlier[row] + tokens;
                }
            }
            reach.put(invocation, found);
        }
    }

    /** Where in {@code [from, to)} the invocation is for the last time, or -1. */
    private static int last(long[] ids, int from, int to, List<Integer> invocation) {
        for (int start = to - invocation.size(); start >= from; start--) {
            int matched = 0;
            while (matched < invocation.size() && ids[start + matched] == invocation.get(matched)) {
                matched++;
            }
            if (matched == invocation.size()) {
                return start;
            }
        }
        return -1;
    }

    /**
     * Which of a layer's vectors an adapter applies to.
     *
     * @param y the layer's output: (B, T, out), or (B, out) for one token of each row
     * @return for each of the B * T vectors whether it does
     */
    boolean[] reached(String path, List<Integer> invocation, Tensor y) {
        int[] found = reach.get(invocation);
        if (found == null) {
            throw new IllegalStateException(
                    "layer '" + path + "' applies an adapter with the invocation tokens " + invocation
                            + ", which was added after they were looked for: open LoraModel.invocation(inputIds) anew");
        }
        if (y.dim() < 2 || y.dim() > 3 || y.size(0) != rows) {
            throw new IllegalArgumentException("layer '" + path + "' gives " + Tensors.describe(y)
                    + ", but the token ids were those of " + rows
                    + " rows: it must give [B, T, out], or [B, out] for one "
                    + "token a row, in the batch that invocation(inputIds) was opened for");
        }
        int tokens = y.dim() == 2 ? 1 : (int) y.size(1);
        boolean[] reached = new boolean[rows * tokens];
        for (int row = 0; row < rows; row++) {
            int end = (row + 1) * tokens;
            Arrays.fill(reached, end - Math.min(found[row], tokens), end, true);
        }
        return reached;
    }
}
