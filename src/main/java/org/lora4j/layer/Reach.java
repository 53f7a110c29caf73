package org.lora4j.layer;

import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.jspecify.annotations.Nullable;
import org.lora4j.ops.Tensors;

/** Which vectors of a layer's output an adapter applies to: those of its rows, from its invocation tokens on if it has any. */
final class Reach {
    private final String path;
    private final ActiveAdapters active;

    Reach(String path, ActiveAdapters active) {
        this.path = path;
        this.active = active;
    }

    /** A change of a layer's output, given its input. */
    interface Change {
        Tensor apply(Tensor x, Tensor y);
    }

    /**
     * The output with a change at some rows, or all if null; for an activated adapter at the vectors of those rows that its
     * invocation reaches.
     */
    Tensor where(LoraWeights weights, Tensor x, Tensor y, long @Nullable [] rows, Change change) {
        if (weights.invocationTokens().isEmpty()) {
            return rows == null ? change.apply(x, y) : changed(rows, x, y, change);
        }
        boolean[] reached = invocation(weights).reached(path, weights.invocationTokens(), y);
        int perRow = reached.length / (int) Math.max(y.size(0), 1);
        long[] vectors = IntStream.range(0, reached.length)
                .filter(i -> reached[i] && (rows == null || Arrays.binarySearch(rows, i / perRow) >= 0))
                .asLongStream()
                .toArray();
        return changed(vectors, x.reshape(-1, x.size(-1)), y.reshape(-1, y.size(-1)), change)
                .view(Tensors.shape(y));
    }

    /** The output with a change at some places along the first dimension. */
    static Tensor changed(long[] places, Tensor x, Tensor y, Change change) {
        Tensor at = Tensor.create(places).to(y.device(), torch.ScalarType.Long);
        Tensor after = change.apply(x.index_select(0, at), y.index_select(0, at));
        return y.to(Tensors.type(after)).index_copy(0, at, after);
    }

    /** What the vectors of an output get, but for those an activated adapter does not apply to: these get -1. */
    int[] among(List<LoraWeights> table, Tensor y, int[] index) {
        for (int slot = 0; slot < table.size(); slot++) {
            List<Integer> tokens = table.get(slot).invocationTokens();
            if (!tokens.isEmpty()) {
                boolean[] reached = invocation(table.get(slot)).reached(path, tokens, y);
                for (int i = 0; i < index.length; i++) {
                    index[i] = index[i] == slot && !reached[i] ? -1 : index[i];
                }
            }
        }
        return index;
    }

    private Invocation invocation(LoraWeights weights) {
        Invocation invocation = active.invocation();
        if (invocation == null) {
            throw new IllegalStateException(
                    "layer '" + path + "' applies an adapter that starts at its invocation tokens "
                            + weights.invocationTokens() + ", but the tokens of this pass are not known: open "
                            + "LoraModel.invocation(inputIds) around the forward pass, on its thread");
        }
        return invocation;
    }
}
