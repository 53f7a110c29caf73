package org.lora4j.ops;

import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;

/**
 * The norms of the rows of an adapted matrix {@code W + s B A}, as DoRA (arXiv:2402.09353) needs them.
 *
 * <p>They come from the factors, without the matrix B A: {@code n_i^2 = |W_i|^2 + 2 s (W_i A^T) . B_i + s^2 B_i (A A^T)
 * B_i^T}. W is asked for a few rows at a time, so that it may lie in a file.
 */
public final class AdaptedRows {
    /** Elements of the weight converted to float32 at a time. */
    private static final long TILE = 1 << 22;

    /** Where the rows of W come from. */
    @FunctionalInterface
    public interface Source {
        /** The rows [from, from + count), shape (count, in), of any floating type. */
        Tensor rows(long from, long count);
    }

    private interface RowWork {
        Tensor of(Tensor tile);
    }

    private final long out;
    private final long in;
    private final Source source;

    /** A matrix W of shape (out, in). */
    public AdaptedRows(long out, long in, Source source) {
        this.out = out;
        this.in = in;
        this.source = source;
    }

    /** The squared norms of the rows of W, shape (out), float64. */
    public Tensor squares() {
        return byRows(tile -> tile.mul(tile).sum(1));
    }

    /**
     * The norms of the rows of W + s B A, shape (out), in the type of A.
     *
     * @param squares what {@link #squares()} gives
     * @param update with A (r, in) and B (out, r), both float32 or both float64
     */
    public Tensor norms(Tensor squares, LowRank update) {
        Tensor a = update.a();
        Tensor b = update.b();
        double s = update.scale();
        Tensor cross = byRows(tile -> tile.to(Tensors.type(a)).matmul(a.t()));
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

    /** Works on a few rows at a time, in float32 or float64, and puts the results together as float64. */
    private Tensor byRows(RowWork work) {
        long rows = Math.max(1, TILE / Math.max(1, in));
        TensorVector parts = new TensorVector();
        for (long at = 0; at < out; at += rows) {
            try (PointerScope scope = new PointerScope()) {
                Tensor tile = source.rows(at, Math.min(rows, out - at));
                boolean wide = Tensors.type(tile) == torch.ScalarType.Double;
                Tensor typed = tile.to(wide ? torch.ScalarType.Double : torch.ScalarType.Float);
                parts.push_back(work.of(typed).to(torch.ScalarType.Double));
            }
        }
        return torch.cat(parts, 0);
    }
}
