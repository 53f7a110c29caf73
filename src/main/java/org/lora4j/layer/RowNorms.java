package org.lora4j.layer;

import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.jspecify.annotations.Nullable;
import org.lora4j.ops.AdaptedRows;
import org.lora4j.ops.LowRank;
import org.lora4j.ops.Tensors;

/**
 * The norms n of the rows of an adapted weight, as DoRA (arXiv:2402.09353) needs them in every pass.
 *
 * <p>They come from {@link AdaptedRows}. They are constants to autograd, as in the paper's section 4.3, and computed anew
 * only when a tensor changed.
 */
public final class RowNorms implements AutoCloseable {
    /** What the norms were computed from; versions count the changes of a tensor. */
    private record State(long address, long weight, long a, long b, double scale) {}

    private @Nullable Tensor norms;
    private @Nullable State state;
    /** The squared norms of the base weight's rows. */
    private @Nullable Tensor squares;

    /**
     * The norms, shape (out), float32 or float64 as the factors.
     *
     * @param weight the base weight (out, in), without any adapter
     */
    synchronized Tensor of(Tensor weight, LoraWeights weights) {
        LowRank update = weights.lowRank();
        State now = new State(
                weight.data_ptr().address(),
                weight._version(),
                weights.a()._version(),
                weights.b()._version(),
                update.scale());
        Tensor known = norms;
        if (known == null || !now.equals(state)) {
            try (NoGradGuard noGrad = new NoGradGuard();
                    PointerScope scope = new PointerScope()) {
                Tensor ofBase = squares;
                if (ofBase == null
                        || state == null
                        || state.address() != now.address()
                        || state.weight() != now.weight()) {
                    ofBase = Tensors.keep(rows(weight).squares());
                    close();
                    squares = ofBase;
                }
                Tensor fresh = Tensors.keep(rows(weight).norms(ofBase, update));
                if (norms != null) {
                    norms.close();
                }
                norms = fresh;
                state = now;
                known = fresh;
            }
        }
        return new Tensor(known);
    }

    /** The norms of the rows of W + s B A, computed once: with A and B still new, DoRA's first magnitude. */
    public static Tensor once(Tensor weight, Tensor a, Tensor b, double scale) {
        try (NoGradGuard noGrad = new NoGradGuard()) {
            AdaptedRows rows = rows(weight);
            LowRank update = new LowRank(LoraWeights.matrix(a), LoraWeights.matrix(b), scale);
            return rows.norms(rows.squares(), update);
        }
    }

    private static AdaptedRows rows(Tensor weight) {
        Tensor data = weight.detach();
        return new AdaptedRows(weight.size(0), weight.size(1), (from, count) -> data.narrow(0, from, count));
    }

    @Override
    public synchronized void close() {
        if (norms != null) {
            norms.close();
            norms = null;
        }
        if (squares != null) {
            squares.close();
            squares = null;
        }
        state = null;
    }
}
