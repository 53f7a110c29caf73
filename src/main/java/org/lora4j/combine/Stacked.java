package org.lora4j.combine;

import java.util.List;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.ops.LowRank;

/**
 * The factors of several updates of one matrix in float64, all A above each other and all B side by side, without scales,
 * and their Gram matrices: what the sum of the updates and the angles between them are found from.
 *
 * @param a (R, n), R the sum of the ranks
 * @param b (m, R)
 * @param gramA {@code A A^T}
 * @param gramB {@code B^T B}
 */
record Stacked(List<LowRank> updates, Tensor a, Tensor b, Tensor gramA, Tensor gramB) {
    /** Of nothing, where only matrices in memory are combined. */
    static Stacked none() {
        Tensor empty = torch.empty(0, 0);
        return new Stacked(List.of(), empty, empty, empty, empty);
    }

    static Stacked of(List<LowRank> updates) {
        TensorVector as = new TensorVector();
        TensorVector bs = new TensorVector();
        for (LowRank update : updates) {
            as.push_back(update.a().to(ScalarType.Double));
            bs.push_back(update.b().to(ScalarType.Double));
        }
        Tensor a = torch.cat(as, 0);
        Tensor b = torch.cat(bs, 1);
        return new Stacked(updates, a, b, a.matmul(a.t()), b.t().matmul(b));
    }

    /** A factor for each of the R ranks, from one for each update, its own scale included; (R). */
    Tensor factors(double[] weights) {
        double[] factors = new double[(int) a.size(0)];
        int at = 0;
        for (int i = 0; i < weights.length; i++) {
            LowRank update = updates.get(i);
            for (long end = at + update.rank(); at < end; at++) {
                factors[at] = weights[i] * update.scale();
            }
        }
        return Tensor.create(factors).to(a.device(), ScalarType.Double);
    }
}
