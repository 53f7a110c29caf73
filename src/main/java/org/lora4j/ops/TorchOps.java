package org.lora4j.ops;

import java.util.List;
import java.util.function.BiConsumer;
import java.util.stream.IntStream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.jspecify.annotations.Nullable;

/**
 * The reference: LibTorch operations only, on any device. It allocates float32 copies of what it works on; the native
 * implementation does not.
 */
final class TorchOps implements LoraOps {
    /** Rows whose norms are computed at a time, in float64. */
    private static final long NORM_ROWS = 512;

    static {
        LibTorch.load();
    }

    @Override
    public String name() {
        return "torch";
    }

    @Override
    public String description() {
        return "torch: LibTorch operations, " + torch.get_num_threads() + " threads";
    }

    @Override
    public void merge(Tensor weight, List<LowRank> updates) {
        Checks.merge(weight, updates);
        if (updates.isEmpty() || weight.numel() == 0) {
            return;
        }
        sum(weight, weight, updates, null);
    }

    @Override
    public void merge(Tensor weight, Tensor from, List<LowRank> updates) {
        Checks.merge(weight, from, updates);
        sum(weight, from, updates, null);
    }

    @Override
    public boolean mergeChecked(Tensor weight, Tensor from, List<LowRank> updates) {
        merge(weight, from, updates);
        return isFinite(weight);
    }

    @Override
    public boolean mergeRescaled(Tensor weight, Tensor from, List<LowRank> updates, Tensor rowFactors, boolean check) {
        Checks.merge(weight, from, updates, rowFactors);
        sum(weight, from, updates, rowFactors);
        return !check || isFinite(weight);
    }

    private static boolean isFinite(Tensor tensor) {
        try (PointerScope scope = new PointerScope()) {
            return torch.isfinite(float32(tensor)).all().item_bool();
        }
    }

    private static void sum(Tensor weight, Tensor from, List<LowRank> updates, @Nullable Tensor rowFactors) {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            Tensor sum = float32(from);
            for (LowRank update : updates) {
                sum = sum.addmm(float32(update.b()), float32(update.a()), new Scalar(1.0), new Scalar(update.scale()));
            }
            weight.copy_(rowFactors == null ? sum : sum.mul(rowFactors.unsqueeze(1)));
        }
    }

    @Override
    public void lowRankUpdate(Tensor y, Tensor x, int[] rows, List<LowRank> adapters) {
        Checks.lowRankUpdate(y, x, rows, adapters);
        if (y.numel() == 0) {
            return;
        }
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            for (int i = 0; i < adapters.size(); i++) {
                long[] own = rowsOf(rows, i);
                if (own.length == rows.length) {
                    y.copy_(updated(y, x, adapters.get(i)));
                } else if (own.length > 0) {
                    Tensor index = torch.tensor(own).to(y.device(), ScalarType.Long);
                    Tensor result = updated(y.index_select(0, index), x.index_select(0, index), adapters.get(i));
                    y.index_copy_(0, index, result.to(Tensors.type(y)));
                }
            }
        }
    }

    @Override
    public void lowRankBackward(
            @Nullable Tensor dx,
            Tensor dy,
            Tensor x,
            @Nullable Tensor h,
            int[] rows,
            List<LowRank> adapters,
            List<LowRankGradient> gradients) {
        BackwardChecks.check(dx, dy, x, h, rows, adapters, gradients);
        for (int i = 0; i < adapters.size(); i++) {
            try (PointerScope scope = new PointerScope();
                    NoGradGuard guard = new NoGradGuard()) {
                long[] own = rowsOf(rows, i);
                if (own.length > 0) {
                    Tensor index = torch.tensor(own).to(dy.device(), ScalarType.Long);
                    backward(dx, dy, x, h, index, adapters.get(i), gradients.get(i));
                }
            }
        }
    }

    private static void backward(
            @Nullable Tensor dx,
            Tensor dy,
            Tensor x,
            @Nullable Tensor h,
            Tensor index,
            LowRank adapter,
            LowRankGradient gradient) {
        Tensor a = float32(adapter.a());
        Tensor outputs = float32(dy.index_select(0, index));
        Tensor inputs = float32(x.index_select(0, index));
        Tensor u = outputs.matmul(float32(adapter.b()));
        if (dx != null) {
            Tensor result = plus(dx.index_select(0, index), u, a, adapter.scale());
            dx.index_copy_(0, index, result.to(Tensors.type(dx)));
        }
        Tensor gradientOfA = gradient.a();
        if (gradientOfA != null) {
            gradientOfA.copy_(plus(gradientOfA, u.t(), inputs, adapter.scale()));
        }
        Tensor gradientOfB = gradient.b();
        if (gradientOfB != null) {
            Tensor v = h == null
                    ? inputs.matmul(a.t())
                    : float32(h.index_select(0, index)).narrow(1, 0, adapter.rank());
            gradientOfB.copy_(plus(gradientOfB, outputs.t(), v, adapter.scale()));
        }
    }

    private static Tensor plus(Tensor start, Tensor left, Tensor right, double scale) {
        return float32(start).addmm(left, right, new Scalar(1.0), new Scalar(scale));
    }

    @Override
    public Tensor gram(Tensor x, Tensor y) {
        DenseChecks.gram(x, y);
        return Scopes.within(() -> {
            try (NoGradGuard guard = new NoGradGuard()) {
                return float64(x).matmul(float64(y).t());
            }
        });
    }

    @Override
    public void rowNorms(Tensor norms, Tensor weight, LowRank update) {
        DenseChecks.rowNorms(norms, weight, update);
        for (long first = 0; first < weight.size(0); first += NORM_ROWS) {
            try (PointerScope scope = new PointerScope();
                    NoGradGuard guard = new NoGradGuard()) {
                long count = Math.min(NORM_ROWS, weight.size(0) - first);
                Tensor a = float64(update.a());
                Tensor b = float64(update.b().narrow(0, first, count));
                Tensor w = float64(weight.narrow(0, first, count));
                Scalar scale = new Scalar((double) (float) update.scale());
                // |w|^2 + b' . (2 a w + a a^T b') with b' = s b
                Tensor scaled = b.mul(scale);
                Tensor products = w.matmul(a.t()).mul(new Scalar(2.0)).add(scaled.matmul(a.matmul(a.t())));
                Tensor squares = w.square().sum(1).add(products.mul(scaled).sum(1));
                norms.narrow(0, first, count)
                        .copy_(float32(squares.clamp_min(new Scalar(0.0)).sqrt()));
            }
        }
    }

    @Override
    public void dequantize(Tensor target, QuantizedWeight weight, long firstRow) {
        DenseChecks.dequantize(target, weight, firstRow);
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            long end = firstRow + target.size(0);
            target.copy_(Dequantizing.inLibTorch(weight, Tensors.type(target), firstRow, end));
        }
    }

    @Override
    public void scatter(Tensor pool, int[] pages, List<Tensor> matrices) {
        DenseChecks.pages(pool, pages, matrices, true);
        copyPages(pool, pages, matrices, (inPool, inMatrix) -> inPool.copy_(inMatrix));
    }

    @Override
    public void gather(List<Tensor> matrices, Tensor pool, int[] pages) {
        DenseChecks.pages(pool, pages, matrices, false);
        copyPages(pool, pages, matrices, (inPool, inMatrix) -> inMatrix.copy_(inPool));
    }

    /** Runs over the rows of all matrices, cut where pages end. */
    private static void copyPages(Tensor pool, int[] pages, List<Tensor> matrices, BiConsumer<Tensor, Tensor> copy) {
        long at = 0;
        for (Tensor matrix : matrices) {
            for (long row = 0; row < matrix.size(0); row++) {
                for (long column = 0; column < matrix.size(1); ) {
                    try (PointerScope scope = new PointerScope();
                            NoGradGuard guard = new NoGradGuard()) {
                        long inPage = at % pool.size(1);
                        long run = Math.min(matrix.size(1) - column, pool.size(1) - inPage);
                        Tensor page = pool.select(0, pages[(int) (at / pool.size(1))]);
                        copy.accept(
                                page.narrow(0, inPage, run),
                                matrix.select(0, row).narrow(0, column, run));
                        column += run;
                        at += run;
                    }
                }
            }
        }
    }

    private static Tensor float64(Tensor tensor) {
        return tensor.to(ScalarType.Double);
    }

    @Override
    public void combine(Tensor y, List<TaskTensor> tensors, SignElection election) {
        TorchCombine.combine(y, tensors, election);
    }

    private static Tensor updated(Tensor y, Tensor x, LowRank adapter) {
        Tensor v = float32(x).matmul(float32(adapter.a()).t());
        return float32(y).addmm(v, float32(adapter.b()).t(), new Scalar(1.0), new Scalar(adapter.scale()));
    }

    private static Tensor float32(Tensor tensor) {
        return tensor.to(ScalarType.Float);
    }

    private static long[] rowsOf(int[] rows, int adapter) {
        return IntStream.range(0, rows.length)
                .filter(t -> rows[t] == adapter)
                .asLongStream()
                .toArray();
    }
}
