package org.lora4j.ops;

import java.util.List;
import java.util.stream.IntStream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;

/**
 * The reference: LibTorch operations only, on any device. It allocates float32 copies of what it works on; the native
 * implementation does not.
 */
final class TorchOps implements LoraOps {
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
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            Tensor sum = float32(weight);
            for (LowRank update : updates) {
                sum = sum.addmm(float32(update.b()), float32(update.a()), new Scalar(1.0), new Scalar(update.scale()));
            }
            weight.copy_(sum);
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
