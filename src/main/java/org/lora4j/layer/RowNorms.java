package org.lora4j.layer;

import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.jspecify.annotations.Nullable;
import org.lora4j.ops.LowRank;
import org.lora4j.ops.Tensors;

/**
 * The norms n of the rows of an adapted weight, as DoRA (arXiv:2402.09353) needs them in every pass.
 *
 * <p>They come from the factors, without the matrix B A: {@code n_i^2 = |W_i|^2 + 2 s (W_i A^T) . B_i + s^2 B_i (A A^T)
 * B_i^T}. They are constants to autograd, as in the paper's section 4.3, and computed anew only when a tensor changed.
 */
public final class RowNorms implements AutoCloseable {
    /** Elements of the weight converted to float32 at a time. */
    private static final long TILE = 1 << 22;

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
                    ofBase = Tensors.keep(byRows(weight, tile -> tile.mul(tile).sum(1)));
                    close();
                    squares = ofBase;
                }
                Tensor fresh = Tensors.keep(norms(weight, ofBase, update));
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
            Tensor squares = byRows(weight, tile -> tile.mul(tile).sum(1));
            return norms(weight, squares, new LowRank(LoraWeights.matrix(a), LoraWeights.matrix(b), scale));
        }
    }

    private static Tensor norms(Tensor weight, Tensor squares, LowRank update) {
        Tensor a = update.a();
        Tensor b = update.b();
        double s = update.scale();
        Tensor cross = byRows(weight, tile -> tile.to(Tensors.type(a)).matmul(a.t()));
        Tensor gram = a.matmul(a.t());
        return cross.mul_(new Scalar(2 * s))
                .add_(b.matmul(gram).mul_(new Scalar(s * s)))
                .mul_(b)
                .sum(1)
                .add_(squares)
                .clamp_min_(new Scalar(0.0))
                .sqrt_()
                .to(Tensors.type(a));
    }

    private interface RowWork {
        Tensor of(Tensor tile);
    }

    /** Works on a few rows of the weight at a time, in float32 or float64, and puts the results together as float64. */
    private static Tensor byRows(Tensor weight, RowWork work) {
        boolean wide = Tensors.type(weight) == torch.ScalarType.Double;
        long rows = Math.max(1, TILE / Math.max(1, weight.size(1)));
        TensorVector parts = new TensorVector();
        for (long at = 0; at < weight.size(0); at += rows) {
            try (PointerScope scope = new PointerScope()) {
                Tensor tile = weight.detach()
                        .narrow(0, at, Math.min(rows, weight.size(0) - at))
                        .to(wide ? torch.ScalarType.Double : torch.ScalarType.Float);
                parts.push_back(work.of(tile).to(torch.ScalarType.Double));
            }
        }
        return torch.cat(parts, 0);
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
