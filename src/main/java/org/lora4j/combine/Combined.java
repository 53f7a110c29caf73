package org.lora4j.combine;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.DoubleStream;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.PeftCompat;
import org.lora4j.layer.Factors;
import org.lora4j.layer.RowNorms;
import org.lora4j.ops.LowRank;
import org.lora4j.ops.Tensors;

/**
 * The combination of adapters at one layer, whose rank may still be open. A layer whose adapters use DoRA is again one with
 * DoRA: with the gains {@code g_i = m_i / n_i} of its rows, the updates are {@code (g_i - 1) W + g_i s_i B_i A_i}. The second
 * parts are combined as the type says, into B A, and {@code c = 1 + sum_i w_i (g_i - 1)} gives the magnitude
 * {@code c |W + B' A|} with {@code B' = B / c}, exactly.
 */
public final class Combined implements AutoCloseable {
    /** Rows that DoRA adapters cancel to less than this cannot be written as a magnitude times a direction. */
    private static final double SMALLEST_GAIN = 1e-5;

    private final LayerInput input;
    private final CombineOptions options;
    private final Interference interference;
    private final List<Components> groups = new ArrayList<>();
    private final List<Factors> fixed = new ArrayList<>();
    private final @Nullable Tensor gain;

    private Combined(LayerInput input, CombineOptions options, Uniform uniform) {
        this.input = input;
        this.options = options;
        List<LayerInput.Member> members = input.members();
        boolean dropsParts = options.has(PeftCompat.COMBINATION_DROPS_PARTS);
        List<@Nullable Tensor> gains = new ArrayList<>();
        members.forEach(member -> gains.add(dropsParts ? null : input.gain(member)));
        gain = dropsParts || !input.hasMagnitudes() ? null : Tensors.keep(gain(gains));
        double[] weights =
                members.stream().mapToDouble(LayerInput.Member::weight).toArray();
        int[] adapters = members.stream().mapToInt(LayerInput.Member::adapter).toArray();
        List<Stacked> updates = new ArrayList<>();
        for (int group = 0; group < input.groups(); group++) {
            updates.add(Stacked.of(input.updates(group, gains)));
        }
        interference = Interference.of(updates, weights);
        for (int group = 0; group < updates.size(); group++) {
            long seed = options.seed() + group;
            GroupSum sum = new GroupSum(updates.get(group), weights, adapters, options, uniform, seed);
            if (options.ofFactors()) {
                keep(sum.ofFactors());
            } else if (options.type() == CombinationType.CAT) {
                keep(sum.sideBySide());
            } else {
                groups.add(sum.components().kept());
            }
        }
    }

    private void keep(Factors factors) {
        Tensors.keep(factors.a());
        Tensors.keep(factors.b());
        fixed.add(factors);
    }

    /**
     * Combines adapters at a layer. What it makes lives until it is closed; the input must live as long.
     *
     * @throws IllegalArgumentException if the options do not go with the adapters
     */
    public static Combined of(LayerInput input, CombineOptions options) {
        return of(input, options, Uniform.seeded(options.seed(), input.path()));
    }

    static Combined of(LayerInput input, CombineOptions options, Uniform uniform) {
        try (NoGradGuard noGrad = new NoGradGuard()) {
            return new Combined(input, options, uniform);
        }
    }

    /** c of the class, shape (out). */
    private Tensor gain(List<@Nullable Tensor> gains) {
        Tensor sum = null;
        for (int i = 0; i < gains.size(); i++) {
            Tensor each = gains.get(i);
            if (each != null) {
                Tensor part = each.sub(new Scalar(1.0))
                        .mul(new Scalar(input.members().get(i).weight()));
                sum = sum == null ? part : sum.add(part);
            }
        }
        if (sum == null) {
            throw new IllegalStateException("no gains");
        }
        Tensor whole = sum.add(new Scalar(1.0));
        if (whole.abs().min().item_double() < SMALLEST_GAIN) {
            throw new ArithmeticException("layer '" + input.path()
                    + "': these weights cancel a row of the base weight that DoRA rescales: change a weight a little");
        }
        return whole;
    }

    /** The rank a rule gives here. {@link RankRule.Total} is for all layers together: see {@link RankBudget}. */
    public int rank(RankRule rule) {
        int grouped = input.groups();
        if (!fixed.isEmpty()) {
            return (int) fixed.get(0).b().size(1) * grouped;
        }
        int sum = input.members().stream().mapToInt(LayerInput.Member::rank).sum();
        int largest =
                input.members().stream().mapToInt(LayerInput.Member::rank).max().orElseThrow();
        int rank = 0;
        for (Components group : groups) {
            int own;
            if (rule instanceof RankRule.Fixed chosen) {
                if (chosen.rank() % grouped != 0) {
                    throw new IllegalArgumentException("rank " + chosen.rank() + " at layer '" + input.path()
                            + "', a convolution with " + grouped + " groups: use a multiple of them");
                }
                own = chosen.rank() / grouped;
            } else if (rule instanceof RankRule.Energy energy) {
                own = group.rankFor(energy.part());
            } else if (rule instanceof RankRule.Numerical) {
                own = group.numericalRank(
                        Arrays.stream(interference.norms()).max().orElse(0));
            } else if (rule instanceof RankRule.Sum) {
                own = sum / grouped;
            } else if (rule instanceof RankRule.Largest) {
                own = largest / grouped;
            } else {
                throw new IllegalArgumentException(rule + " is shared by all layers");
            }
            long side = Math.min(group.left().size(0), group.right().size(1));
            long most = rule instanceof RankRule.Fixed ? side : group.count();
            rank = Math.max(rank, (int) Math.max(1, Math.min(own, most)));
        }
        return rank * grouped;
    }

    /** The squares of the singular values of the combination, largest first; those of groups added up. */
    double[] energies() {
        double[] energies = new double[groups.isEmpty() ? 0 : groups.get(0).count()];
        for (Components group : groups) {
            for (int i = 0; i < Math.min(energies.length, group.count()); i++) {
                energies[i] += group.values()[i] * group.values()[i];
            }
        }
        return energies;
    }

    /** Whether the rank follows from the factors, as with {@code cat}. */
    boolean isFixed() {
        return !fixed.isEmpty();
    }

    LayerInput input() {
        return input;
    }

    /**
     * The layer of the new adapter.
     *
     * @param rank from {@link #rank} or a budget
     * @param type of the factors
     * @param withBias whether the new adapter has biases on B, which are zero where none is combined
     * @param withMagnitude whether it uses DoRA, with a magnitude that changes nothing where none is combined
     */
    public LayerResult at(int rank, ScalarType type, boolean withBias, boolean withMagnitude) {
        try (NoGradGuard noGrad = new NoGradGuard()) {
            int own = rank / input.groups();
            TensorVector as = new TensorVector();
            TensorVector bs = new TensorVector();
            for (Components group : groups) {
                Factors factors = group.factors(own);
                as.push_back(factors.a());
                bs.push_back(factors.b());
            }
            for (Factors factors : fixed) {
                as.push_back(factors.a());
                bs.push_back(factors.b());
            }
            Tensor a = torch.cat(as, 0);
            Tensor b = torch.cat(bs, 0);
            Double clamp = options.clamp();
            if (clamp != null) {
                Scalar high = new Scalar(quantile(torch.cat(new TensorVector(b.flatten(), a.flatten()), 0), clamp));
                Scalar low = new Scalar(-high.toDouble());
                a = a.clamp(
                        new org.bytedeco.pytorch.ScalarOptional(low), new org.bytedeco.pytorch.ScalarOptional(high));
                b = b.clamp(
                        new org.bytedeco.pytorch.ScalarOptional(low), new org.bytedeco.pytorch.ScalarOptional(high));
            }
            double norm = clamp == null && fixed.isEmpty()
                    ? Math.sqrt(groups.stream()
                            .mapToDouble(group -> group.energy(own))
                            .sum())
                    : norm(a, b);
            if (gain != null) {
                b = b.div(gain.to(Tensors.type(b)).unsqueeze(1));
            }
            a = a.to(type).contiguous();
            b = b.to(type).contiguous();
            Tensor bias = withBias ? bias(type) : null;
            Tensor magnitude = withMagnitude ? magnitude(a, b).to(type) : null;
            return new LayerResult(shapedA(a), shapedB(b), bias, magnitude, report(rank, norm));
        }
    }

    private double norm(Tensor a, Tensor b) {
        double squared = 0;
        long rows = b.size(0) / input.groups();
        for (int group = 0; group < input.groups(); group++) {
            LowRank own = new LowRank(a.narrow(0, group * b.size(1), b.size(1)), b.narrow(0, group * rows, rows), 1);
            squared += Interference.product(own, own);
        }
        return Math.sqrt(Math.max(0, squared));
    }

    private Tensor bias(ScalarType type) {
        Tensor sum = options.has(PeftCompat.COMBINATION_DROPS_PARTS) ? null : input.bias();
        Tensor bias = sum == null ? input.members().get(0).b().new_zeros(input.out()) : sum;
        return bias.to(type);
    }

    private Tensor magnitude(Tensor a, Tensor b) {
        boolean fresh = options.has(PeftCompat.COMBINATION_DROPS_PARTS);
        Tensor norms = RowNorms.once(input.baseMatrix(), a, fresh ? torch.zeros_like(b) : b, 1);
        return gain == null ? norms : norms.mul(gain.to(Tensors.type(norms)));
    }

    /** The value below which a part of the elements lies, between two of them in proportion. */
    private static double quantile(Tensor values, double part) {
        Tensor sorted = values.sort().get0();
        double place = part * (sorted.numel() - 1);
        long below = (long) place;
        double low = sorted.select(0, below).item_double();
        double high = sorted.select(0, Math.min(below + 1, sorted.numel() - 1)).item_double();
        return low + (place - below) * (high - low);
    }

    private Tensor shapedA(Tensor a) {
        long[] shape = Tensors.shape(input.members().get(0).a());
        shape[0] = a.size(0);
        return a.view(shape);
    }

    private Tensor shapedB(Tensor b) {
        long[] shape = new long[(int) input.members().get(0).b().dim()];
        Arrays.fill(shape, 1);
        shape[0] = b.size(0);
        shape[1] = b.size(1);
        return b.view(shape);
    }

    private LayerReport report(int rank, double norm) {
        double total = groups.stream().mapToDouble(Components::total).sum();
        double kept = groups.stream()
                .mapToDouble(group -> group.energy(rank / input.groups()))
                .sum();
        int adapters = input.members().stream()
                        .mapToInt(LayerInput.Member::adapter)
                        .max()
                        .orElse(0)
                + 1;
        List<Integer> ranks = new ArrayList<>(java.util.Collections.nCopies(adapters, 0));
        input.members().forEach(member -> ranks.set(member.adapter(), member.rank()));
        return new LayerReport(
                input.path(),
                input.out(),
                input.in(),
                ranks,
                rank,
                1,
                norm,
                total == 0 ? 1 : kept / total,
                list(interference.norms()),
                Arrays.stream(interference.cosines()).map(Combined::list).toList(),
                interference.signConflict(),
                list(Arrays.stream(energies()).map(Math::sqrt).toArray()));
    }

    private static List<Double> list(double[] values) {
        return DoubleStream.of(values).boxed().toList();
    }

    @Override
    public void close() {
        groups.forEach(Components::close);
        fixed.forEach(factors -> {
            factors.a().close();
            factors.b().close();
        });
        if (gain != null) {
            gain.close();
        }
    }
}
