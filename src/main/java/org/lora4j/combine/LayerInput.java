package org.lora4j.combine;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.function.Supplier;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.ScalarTypeOptional;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.jspecify.annotations.Nullable;
import org.lora4j.layer.RowNorms;
import org.lora4j.ops.LowRank;
import org.lora4j.ops.Tensors;

/**
 * What is combined at one layer.
 *
 * @param path the layer's path, which the random numbers of the layer depend on
 * @param members the adapters that have factors here
 * @param base gives the weight of the base model as a matrix (out, in) where DoRA needs it; null where it is unknown
 */
public record LayerInput(
        String path, List<Member> members, @Nullable Supplier<Tensor> base) {
    /**
     * One adapter at the layer.
     *
     * @param adapter its place among all that are combined
     * @param a A, (r, in) or (r, in, *kernel)
     * @param b B, (out, r) or (out, r / groups, 1, ...)
     * @param scale the factor of B A
     * @param weight how much the adapter counts
     * @param bias the bias on B, (out), which the scale multiplies too; or null
     * @param magnitude DoRA's magnitude, of out elements; or null
     */
    public record Member(
            int adapter,
            Tensor a,
            Tensor b,
            double scale,
            double weight,
            @Nullable Tensor bias,
            @Nullable Tensor magnitude) {
        int rank() {
            return (int) a.size(0);
        }

        int groups() {
            return (int) (a.size(0) / Math.max(1, b.size(1)));
        }

        /** The factors as matrices (r, in) and (out, r / groups). */
        Tensor matrixA() {
            return matrix(a);
        }

        Tensor matrixB() {
            return matrix(b);
        }

        private static Tensor matrix(Tensor factor) {
            Tensor data = factor.detach();
            return data.dim() == 2 ? data : data.flatten(1, -1);
        }
    }

    /** @throws IllegalArgumentException naming the layer, if factors do not fit each other or are not finite */
    public LayerInput {
        members = List.copyOf(members);
        if (members.isEmpty()) {
            throw new IllegalArgumentException("layer '" + path + "' has no factors to combine");
        }
        Member first = members.get(0);
        for (Member member : members) {
            String adapter = "adapter " + (member.adapter() + 1) + " at layer '" + path + "'";
            long rank = member.a().size(0);
            if (rank < 1 || member.b().size(1) < 1 || rank % member.b().size(1) != 0) {
                throw new IllegalArgumentException(adapter + " has A " + Tensors.describe(member.a()) + " and B "
                        + Tensors.describe(member.b()) + ", which share no rank: pass the factors of one layer");
            }
            if (!Arrays.equals(tail(member.a()), tail(first.a()))
                    || member.b().size(0) != first.b().size(0)
                    || member.groups() != first.groups()) {
                throw new IllegalArgumentException(adapter + " has A " + Tensors.describe(member.a()) + " and B "
                        + Tensors.describe(member.b()) + ", the first adapter has A " + Tensors.describe(first.a())
                        + " and B " + Tensors.describe(first.b())
                        + ": only adapters of one base model can be combined");
            }
            for (Tensor part : parts(member)) {
                // In float64 no sum of finite numbers overflows.
                if (!Double.isFinite(
                        part.sum(new ScalarTypeOptional(ScalarType.Double)).item_double())) {
                    throw new IllegalArgumentException(
                            adapter + " holds values that are not finite: leave it out or train it anew");
                }
            }
            if (member.magnitude() != null && base == null) {
                throw new IllegalArgumentException(
                        adapter + " uses DoRA, whose updates depend on the weights of the base model: give the base");
            }
        }
    }

    private static List<Tensor> parts(Member member) {
        List<Tensor> parts = new ArrayList<>(List.of(member.a(), member.b()));
        if (member.bias() != null) {
            parts.add(member.bias());
        }
        if (member.magnitude() != null) {
            parts.add(member.magnitude());
        }
        return parts;
    }

    private static long[] tail(Tensor a) {
        long[] shape = Tensors.shape(a);
        return Arrays.copyOfRange(shape, 1, shape.length);
    }

    int groups() {
        return members.get(0).groups();
    }

    /** The rows of the layer's matrix. */
    long out() {
        return members.get(0).b().size(0);
    }

    /** The columns of the layer's matrix. */
    long in() {
        return members.get(0).matrixA().size(1);
    }

    boolean hasMagnitudes() {
        return members.stream().anyMatch(member -> member.magnitude() != null);
    }

    boolean hasBiases() {
        return members.stream().anyMatch(member -> member.bias() != null);
    }

    /** How strongly DoRA rescales the rows of W + s B A, shape (out); null without a magnitude. */
    @Nullable
    Tensor gain(Member member) {
        Tensor magnitude = member.magnitude();
        if (magnitude == null) {
            return null;
        }
        Tensor norms = RowNorms.once(baseMatrix(), member.a(), member.b(), member.scale());
        return magnitude.detach().flatten().to(Tensors.type(norms)).div(norms);
    }

    Tensor baseMatrix() {
        return Objects.requireNonNull(base, "base").get();
    }

    /**
     * The updates of the members in one group of the layer's outputs, without their weights; those of DoRA adapters with
     * rows rescaled as DoRA does.
     *
     * @param gains for each member its gain or null
     */
    List<LowRank> updates(int group, List<@Nullable Tensor> gains) {
        List<LowRank> updates = new ArrayList<>();
        for (int i = 0; i < members.size(); i++) {
            Member member = members.get(i);
            Tensor a = member.matrixA();
            Tensor b = member.matrixB();
            Tensor gain = gains.get(i);
            if (gain != null) {
                b = b.to(Tensors.type(gain)).mul(gain.unsqueeze(1));
            }
            long rank = b.size(1);
            long rows = out() / groups();
            updates.add(new LowRank(a.narrow(0, group * rank, rank), b.narrow(0, group * rows, rows), member.scale()));
        }
        return updates;
    }

    /** Biases add up: {@code sum_i w_i s_i b_i}, shape (out); null if no member has one. */
    @Nullable
    Tensor bias() {
        Tensor sum = null;
        for (Member member : members) {
            if (member.bias() != null) {
                Tensor part = member.bias().detach().mul(new Scalar(member.weight() * member.scale()));
                sum = sum == null ? part : sum.add(part);
            }
        }
        return sum;
    }
}
