package org.lora4j.combine;

import java.util.ArrayList;
import java.util.List;
import java.util.stream.IntStream;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.layer.Factors;
import org.lora4j.ops.LowRank;

/** The combination of the updates of one matrix: a layer's, or one group's of a convolution with groups. */
final class GroupSum {
    private final Stacked stacked;
    private final List<LowRank> updates;
    private final double[] weights;
    private final CombineOptions options;
    private final Uniform uniform;
    private final long seed;
    private final int[] adapters;

    /**
     * @param adapters the place of each update's adapter among all
     * @param seed of the decomposition
     */
    GroupSum(Stacked updates, double[] weights, int[] adapters, CombineOptions options, Uniform uniform, long seed) {
        this.stacked = updates;
        this.updates = updates.updates();
        this.weights = weights;
        this.adapters = adapters;
        this.options = options;
        this.uniform = uniform;
        this.seed = seed;
    }

    /** The factors of all side by side. */
    Factors sideBySide() {
        return concatenation(weights);
    }

    /** The components of the combination: all of a sum of factors, else as many as the rule for the rank needs. */
    Components components() {
        if (options.type().isFactored()) {
            double[] factors = options.type() == CombinationType.SLERP ? spherical() : weights;
            return Components.of(stacked, stacked.factors(factors));
        }
        return options.space() == MergeSpace.CORE ? inCoreSpace() : dense();
    }

    private Factors concatenation(double[] factors) {
        TensorVector as = new TensorVector();
        TensorVector bs = new TensorVector();
        for (int i = 0; i < updates.size(); i++) {
            LowRank update = updates.get(i);
            as.push_back(wide(update.a()).mul(new Scalar(factors[i] * update.scale())));
            bs.push_back(wide(update.b()));
        }
        return new Factors(torch.cat(as, 0), torch.cat(bs, 1));
    }

    /** At least float32. */
    private static Tensor wide(Tensor tensor) {
        return tensor.to(torch.promote_types(tensor.scalar_type(), ScalarType.Float));
    }

    /** The factors of two updates on the arc between their directions (Shoemake, 1985); on the line if there is no arc. */
    private double[] spherical() {
        if (updates.size() == 1) {
            return new double[] {weights[0]};
        }
        double t = weights[1] / (weights[0] + weights[1]);
        double norms = Math.sqrt(Interference.product(updates.get(0), updates.get(0)))
                * Math.sqrt(Interference.product(updates.get(1), updates.get(1)));
        double cosine = norms == 0 ? 1 : Interference.product(updates.get(0), updates.get(1)) / norms;
        double angle = Math.acos(Math.max(-1, Math.min(1, cosine)));
        if (Math.sin(angle) < 1e-6) {
            return new double[] {1 - t, t};
        }
        return new double[] {Math.sin((1 - t) * angle) / Math.sin(angle), Math.sin(t * angle) / Math.sin(angle)};
    }

    /** The rule of the type applied to matrices of one shape. */
    private Tiles merged(List<Tiles> matrices, double[] factors, String what) {
        List<Tiles> pruned = new ArrayList<>();
        for (int i = 0; i < matrices.size(); i++) {
            boolean prunes = options.type().pruning() != CombinationType.Pruning.NONE;
            pruned.add(prunes ? new Pruned(matrices.get(i), options, adapters[i], what, uniform) : matrices.get(i));
        }
        return new Elected(pruned, factors, options);
    }

    /** The combination of matrices in memory by the type's rule. */
    static Tensor dense(List<Tensor> matrices, double[] weights, CombineOptions options) {
        int[] adapters = IntStream.range(0, matrices.size()).toArray();
        GroupSum sum = new GroupSum(Stacked.none(), weights, adapters, options, Uniform.seeded(options.seed(), ""), 0);
        return sum.merged(matrices.stream().map(Tiles::of).toList(), weights, "delta")
                .whole();
    }

    private Components dense() {
        Tiles sum = merged(updates.stream().map(Tiles::of).toList(), weights, "delta")
                .kept();
        int side = (int) Math.min(sum.rows(), sum.columns());
        int ranks = updates.stream().mapToInt(each -> (int) each.rank()).sum();
        int largest = updates.stream().mapToInt(each -> (int) each.rank()).max().orElseThrow();
        RankRule rule = options.rank();
        if (rule instanceof RankRule.Energy energy) {
            return RandomizedSvd.ofEnergy(sum, energy.part(), side, seed);
        }
        int wanted = side;
        if (rule instanceof RankRule.Fixed fixed) {
            wanted = fixed.rank();
        } else if (rule instanceof RankRule.Largest) {
            wanted = largest;
        } else if (rule instanceof RankRule.Sum) {
            wanted = ranks;
        } else if (rule instanceof RankRule.Total) {
            wanted = 2 * ranks;
        }
        return RandomizedSvd.of(sum, Math.min(side, wanted), seed);
    }

    /**
     * All updates in the bases of the left singular vectors of the B side by side and of the right ones of the A stacked,
     * combined there and taken back. The scales count to the A.
     */
    private Components inCoreSpace() {
        Tensor left = basis(stacked.b());
        Tensor scales = stacked.factors(updates.stream().mapToDouble(each -> 1).toArray());
        Tensor right = basis(stacked.a().mul(scales.unsqueeze(1)).t());
        List<Tiles> cores = updates.stream()
                .map(update -> left.t()
                        .matmul(update.b().to(ScalarType.Double))
                        .matmul(update.a().to(ScalarType.Double).matmul(right))
                        .mul(new Scalar(update.scale())))
                .map(Tiles::of)
                .toList();
        Components core = Components.of(merged(cores, weights, "core").whole());
        return new Components.Svd(core.left(), core.values(), core.right())
                .components(left.matmul(core.left()), core.right().matmul(right.t()), core.total());
    }

    private static Tensor basis(Tensor matrix) {
        Components.Qr qr = Components.Qr.of(matrix);
        return qr.q().matmul(Components.Svd.of(qr.r()).u());
    }

    /**
     * PEFT's way with the types without an SVD: A and B each combined by themselves, with the roots of the weights, whose
     * signs go to A.
     *
     * @throws IllegalArgumentException if the ranks differ
     */
    Factors ofFactors() {
        if (updates.size() > 1
                && updates.stream().mapToLong(LowRank::rank).distinct().count() > 1) {
            throw new IllegalArgumentException("the adapters have the ranks "
                    + updates.stream().map(LowRank::rank).toList() + ", and PEFT combines factors of one rank only: "
                    + "leave out COMBINES_FACTORS");
        }
        double[] ofA = new double[weights.length];
        double[] ofB = new double[weights.length];
        for (int i = 0; i < weights.length; i++) {
            double factor = weights[i] * updates.get(i).scale();
            ofB[i] = (float) Math.sqrt(Math.abs(factor));
            ofA[i] = Math.copySign(ofB[i], factor);
        }
        if (updates.size() == 1 && isAlone()) {
            LowRank only = updates.get(0);
            return new Factors(only.a().mul(new Scalar(ofA[0])), only.b().mul(new Scalar(ofB[0])));
        }
        return new Factors(
                merged(updates.stream().map(each -> Tiles.of(each.a())).toList(), ofA, "A")
                        .whole(),
                merged(updates.stream().map(each -> Tiles.of(each.b())).toList(), ofB, "B")
                        .whole());
    }

    private boolean isAlone() {
        return adapters.length == 1 && adapters[0] == 0;
    }
}
