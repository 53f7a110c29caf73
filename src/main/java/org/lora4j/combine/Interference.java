package org.lora4j.combine;

import java.util.List;
import java.util.stream.LongStream;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.ops.LowRank;

/**
 * How the updates of several adapters at one layer lie to each other. Norms and cosines come from the factors: {@code <B1 A1,
 * B2 A2>} is the sum of the elements of {@code (B1^T B2)} times those of {@code (A1 A2^T)}.
 *
 * @param norms the Frobenius norms of the weighted updates
 * @param cosines the cosine of the angle between each two of them; 0 where one is zero
 * @param signConflict the part of the elements at which two of them have different signs, of up to 256 rows and 256 columns
 *     spread over the matrix
 */
record Interference(double[] norms, double[][] cosines, double signConflict) {
    private static final long SAMPLE = 256;

    /**
     * @param groups the updates of all adapters for each group of the layer's outputs
     * @param weights a factor for each adapter
     */
    static Interference of(List<Stacked> groups, double[] weights) {
        int n = weights.length;
        double[][] products = new double[n][n];
        double signConflict = 0;
        for (Stacked group : groups) {
            add(products, group, weights);
            signConflict += signConflict(group.updates(), weights) / groups.size();
        }
        double[] norms = new double[n];
        double[][] cosines = new double[n][n];
        for (int i = 0; i < n; i++) {
            norms[i] = Math.sqrt(Math.max(0, products[i][i]));
        }
        for (int i = 0; i < n; i++) {
            for (int j = 0; j < n; j++) {
                double length = norms[i] * norms[j];
                cosines[i][j] = length == 0 ? 0 : Math.max(-1, Math.min(1, products[i][j] / length));
            }
        }
        return new Interference(norms, cosines, signConflict);
    }

    /** Adds the products of all pairs. */
    private static void add(double[][] products, Stacked group, double[] weights) {
        List<LowRank> updates = group.updates();
        Tensor both = group.gramB().mul(group.gramA());
        long row = 0;
        for (int i = 0; i < weights.length; i++) {
            long column = 0;
            for (int j = 0; j < weights.length; j++) {
                Tensor block = both.narrow(0, row, updates.get(i).rank())
                        .narrow(1, column, updates.get(j).rank());
                double scale = updates.get(i).scale() * updates.get(j).scale();
                products[i][j] += weights[i] * weights[j] * scale * block.sum().item_double();
                column += updates.get(j).rank();
            }
            row += updates.get(i).rank();
        }
    }

    /** The sum of the products of the elements of two updates. */
    static double product(LowRank one, LowRank other) {
        Tensor bs = wide(one.b()).t().matmul(wide(other.b()));
        Tensor as = wide(one.a()).matmul(wide(other.a()).t());
        return one.scale() * other.scale() * bs.mul(as).sum().item_double();
    }

    private static Tensor wide(Tensor tensor) {
        return tensor.to(ScalarType.Double);
    }

    private static double signConflict(List<LowRank> updates, double[] weights) {
        if (updates.size() < 2) {
            return 0;
        }
        Tensor plus = null;
        Tensor minus = null;
        Scalar zero = new Scalar(0.0);
        for (int i = 0; i < updates.size(); i++) {
            LowRank update = updates.get(i);
            Tensor b = sample(update.b(), 0).to(ScalarType.Float);
            Tensor a = sample(update.a(), 1).to(ScalarType.Float);
            Tensor part = b.matmul(a).mul(new Scalar(weights[i] * update.scale()));
            Tensor above = part.gt(zero);
            Tensor below = part.lt(zero);
            plus = plus == null ? above : plus.logical_or_(above);
            minus = minus == null ? below : minus.logical_or_(below);
        }
        return plus.logical_and(minus).to(ScalarType.Float).mean().item_double();
    }

    private static Tensor sample(Tensor tensor, int dimension) {
        long size = tensor.size(dimension);
        if (size <= SAMPLE) {
            return tensor;
        }
        long[] places = LongStream.range(0, SAMPLE).map(i -> i * size / SAMPLE).toArray();
        return tensor.index_select(dimension, Tensor.create(places).to(tensor.device(), ScalarType.Long));
    }
}
