package org.lora4j.ops;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.LongStream;
import java.util.stream.Stream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;

/** The gradients of a batch's updates: LibTorch's and the native ones against double precision and against autograd. */
class LowRankBackwardTest {
    private static final int[] WIDTHS = {1, 5, 7, 8, 16, 17, 33, 64, 65, 130};
    private static final int[] RANKS = {1, 2, 3, 6, 7, 8, 9, 17};

    private final LoraOps torchOps = Ops.named("torch");
    private final LoraOps nativeOps = Ops.named("native");

    static LongStream seeds() {
        return LongStream.range(0, 50);
    }

    @ParameterizedTest
    @MethodSource("seeds")
    void addsWhatDoublePrecisionAdds(long seed) {
        try (PointerScope scope = new PointerScope()) {
            Samples samples = new Samples(seed);
            int in = samples.pick(WIDTHS);
            int out = samples.pick(WIDTHS);
            int count = samples.pick(0, 1, 2, 6, 7, 40, 97, 300);
            Tensor dy = samples.matrix(count, out);
            Tensor x = samples.matrix(count, in);
            List<LowRank> adapters = new ArrayList<>();
            List<LowRankGradient> gradients = new ArrayList<>();
            for (int i = samples.random().nextInt(4); i > 0; i--) {
                LowRank adapter = samples.lowRank(samples.pick(RANKS), in, out);
                adapters.add(adapter);
                gradients.add(new LowRankGradient(
                        samples.random().nextInt(5) == 0 ? null : samples.matrix(adapter.rank(), in),
                        samples.random().nextInt(5) == 0 ? null : samples.matrix(out, adapter.rank())));
            }
            Tensor dx = samples.random().nextInt(5) == 0 ? null : samples.matrix(count, in);
            int[] rows = samples.random().ints(count, -1, adapters.size()).toArray();
            Tensor h = samples.random().nextBoolean() ? products(x, rows, adapters) : null;

            List<Tensor> targets = targets(dx, gradients);
            List<Exact> expected = expected(dx, dy, x, rows, adapters, gradients);
            List<Tensor> start = targets.stream().map(Tensor::clone).toList();
            torchOps.lowRankBackward(dx, dy, x, h, rows, adapters, gradients);
            for (int i = 0; i < targets.size(); i++) {
                expected.get(i).check("seed " + seed + ", torch, target " + i, targets.get(i));
            }
            List<float[]> first = new ArrayList<>();
            InstructionSets.each(isa -> {
                for (int i = 0; i < targets.size(); i++) {
                    targets.get(i).copy_(start.get(i));
                }
                nativeOps.lowRankBackward(dx, dy, x, h, rows, adapters, gradients);
                for (int i = 0; i < targets.size(); i++) {
                    expected.get(i).check("seed " + seed + ", " + isa + ", target " + i, targets.get(i));
                    float[] bits = Expected.floats(targets.get(i));
                    if (first.size() < targets.size()) {
                        first.add(bits);
                    }
                    assertThat(bits).as("seed %d, %s, target %d", seed, isa, i).isEqualTo(first.get(i));
                }
            });
        }
    }

    private static List<Tensor> targets(Tensor dx, List<LowRankGradient> gradients) {
        List<Tensor> targets = new ArrayList<>();
        Stream.concat(Stream.of(new Tensor[] {dx}), gradients.stream().flatMap(g -> Stream.of(g.a(), g.b())))
                .filter(each -> each != null)
                .forEach(targets::add);
        return targets;
    }

    /** What the forward pass keeps: A_a x[t] of each row, in more columns than the largest rank. */
    private static Tensor products(Tensor x, int[] rows, List<LowRank> adapters) {
        long rank = adapters.stream().mapToLong(LowRank::rank).max().orElse(0);
        Tensor h = torch.zeros(rows.length, rank + 2);
        for (int t = 0; t < rows.length; t++) {
            if (rows[t] >= 0) {
                LowRank adapter = adapters.get(rows[t]);
                Tensor row = x.narrow(0, t, 1).to(ScalarType.Double);
                Tensor product = row.matmul(adapter.a().to(ScalarType.Double).t());
                h.narrow(0, t, 1).narrow(1, 0, adapter.rank()).copy_(product);
            }
        }
        return h;
    }

    /** Values in double precision with the total magnitude of the terms of each, so that rounding can be bounded. */
    private record Exact(double[] values, double[] magnitudes, long terms) {
        static Exact of(Tensor start) {
            double[] values = Expected.values(start);
            return new Exact(values, Arrays.stream(values).map(Math::abs).toArray(), 0);
        }

        Exact plus(Tensor term, Tensor magnitude, long count) {
            double[] added = Expected64.values(term);
            double[] size = Expected64.values(magnitude);
            for (int i = 0; i < values.length; i++) {
                values[i] += added[i];
                magnitudes[i] += size[i];
            }
            return new Exact(values, magnitudes, terms + count);
        }

        void check(String what, Tensor actual) {
            double[] got = Expected.values(actual);
            ScalarType type = Tensors.type(actual);
            double half = type == ScalarType.BFloat16 ? 0x1p-8 : type == ScalarType.Half ? 0x1p-11 : 0x1p-24;
            double smallest = type == ScalarType.Half ? 0x1p-25 : 0x1p-126;
            for (int i = 0; i < got.length; i++) {
                double sums = terms * 0x1p-24 * magnitudes[i] * 1.001;
                double bound = terms == 0 ? 0 : sums + half * (Math.abs(values[i]) + sums) + smallest;
                if (!(Math.abs(got[i] - values[i]) <= bound)) {
                    throw new AssertionError(
                            what + ", element " + i + " is " + got[i] + ", expected " + values[i] + " +- " + bound);
                }
            }
        }
    }

    /** Elements of a float64 tensor. */
    private static final class Expected64 {
        static double[] values(Tensor tensor) {
            double[] values = new double[(int) tensor.numel()];
            if (values.length > 0) {
                new org.bytedeco.javacpp.DoublePointer(tensor.contiguous().data_ptr()).get(values);
            }
            return values;
        }
    }

    private static List<Exact> expected(
            Tensor dx, Tensor dy, Tensor x, int[] rows, List<LowRank> adapters, List<LowRankGradient> gradients) {
        List<Exact> expected = new ArrayList<>();
        Exact ofDx = dx == null ? null : Exact.of(dx);
        List<Exact> factors = new ArrayList<>();
        for (int i = 0; i < adapters.size(); i++) {
            int index = i;
            LowRank adapter = adapters.get(i);
            // Rows of other adapters are zero, so that they add nothing.
            Tensor own = torch.tensor(
                            Arrays.stream(rows).map(a -> a == index ? 1 : 0).toArray())
                    .to(ScalarType.Double)
                    .unsqueeze(1);
            Tensor s = torch.tensor((double) (float) adapter.scale());
            Tensor a = adapter.a().to(ScalarType.Double);
            Tensor b = adapter.b().to(ScalarType.Double);
            Tensor left = dy.to(ScalarType.Double).mul(own);
            Tensor right = x.to(ScalarType.Double).mul(own);
            Tensor u = left.matmul(b).mul(s);
            Tensor uSize = left.abs().matmul(b.abs()).mul(s.abs());
            Tensor h = right.matmul(a.t()).mul(s);
            Tensor hSize = right.abs().matmul(a.abs().t()).mul(s.abs());
            long terms = x.size(1) + dy.size(1) + x.size(0) + adapter.rank() + 8;
            if (ofDx != null) {
                ofDx = ofDx.plus(u.matmul(a), uSize.matmul(a.abs()), terms);
            }
            if (gradients.get(i).a() != null) {
                factors.add(Exact.of(gradients.get(i).a())
                        .plus(u.t().matmul(right), uSize.t().matmul(right.abs()), terms));
            }
            if (gradients.get(i).b() != null) {
                factors.add(Exact.of(gradients.get(i).b())
                        .plus(left.t().matmul(h), left.abs().t().matmul(hSize), terms));
            }
        }
        if (ofDx != null) {
            expected.add(ofDx);
        }
        expected.addAll(factors);
        return expected;
    }

    @ParameterizedTest
    @ValueSource(strings = {"torch", "native"})
    void theyAreAutogradsGradients(String name) {
        LoraOps ops = Ops.named(name);
        Samples samples = new Samples(5);
        Tensor x = samples.matrix(300, 40, ScalarType.Float, Samples.Layout.CONTIGUOUS);
        Tensor dy = samples.matrix(300, 50, ScalarType.Float, Samples.Layout.CONTIGUOUS);
        Tensor a = samples.matrix(6, 40, ScalarType.Float, Samples.Layout.CONTIGUOUS);
        Tensor b = samples.matrix(50, 6, ScalarType.Float, Samples.Layout.CONTIGUOUS);
        List<LowRank> adapters = List.of(new LowRank(a, b, 0.75));
        Tensor dx = torch.zeros(300, 40);
        LowRankGradient gradient = new LowRankGradient(torch.zeros(6, 40), torch.zeros(50, 6));
        ops.lowRankBackward(dx, dy, x, null, new int[300], adapters, List.of(gradient));

        for (Tensor leaf : List.of(x, a, b)) {
            leaf.requires_grad_(true);
        }
        x.matmul(a.t()).matmul(b.t()).mul(new Scalar(0.75)).mul(dy).sum().backward();
        close(dx, x.grad());
        close(gradient.a(), a.grad());
        close(gradient.b(), b.grad());
    }

    private static void close(Tensor actual, Tensor expected) {
        double largest = expected.abs().max().item_double();
        assertThat(actual.sub(expected).abs().max().item_double()).isLessThan(1e-5 * largest);
        assertThat(largest).isGreaterThan(1);
    }

    @Test
    void autogradSeesTheChange() {
        Samples samples = new Samples(6);
        LowRankGradient gradient = new LowRankGradient(torch.zeros(2, 5), null);
        Tensor dx = torch.zeros(3, 5);
        long before = dx._version();
        long factor = gradient.a()._version();
        List<LowRank> adapters = List.of(samples.lowRank(2, 5, 4));
        nativeOps.lowRankBackward(
                dx, samples.matrix(3, 4), samples.matrix(3, 5), null, new int[3], adapters, List.of(gradient));
        assertThat(dx._version()).isGreaterThan(before);
        assertThat(gradient.a()._version()).isGreaterThan(factor);
    }

    private interface Call {
        void on(LoraOps ops);
    }

    static Stream<Arguments> refusals() {
        Samples samples = new Samples(29);
        Tensor x = torch.ones(3, 5);
        Tensor dy = torch.ones(3, 4);
        Tensor dx = torch.ones(3, 5);
        LowRank adapter = samples.lowRank(2, 5, 4);
        List<LowRank> one = List.of(adapter);
        List<LowRankGradient> none = List.of(new LowRankGradient(null, null));
        int[] rows = {0, -1, 0};
        Tensor shared = torch.zeros(20);
        Tensor first = shared.narrow(0, 0, 10).view(2, 5);
        Tensor second = shared.narrow(0, 8, 8).view(4, 2);
        return Stream.of(
                refusal("dy is", ops -> ops.lowRankBackward(dx, dy.to(ScalarType.Long), x, null, rows, one, none)),
                refusal("dx is", ops -> ops.lowRankBackward(torch.ones(3, 4), dy, x, null, rows, one, none)),
                refusal("dx is", ops -> ops.lowRankBackward(torch.ones(2, 5), dy, x, null, rows, one, none)),
                refusal("dx has", ops -> ops.lowRankBackward(torch.ones(5).expand(3, 5), dy, x, null, rows, one, none)),
                refusal("x shares", ops -> ops.lowRankBackward(x, dy, x, null, rows, one, none)),
                refusal("x must", ops -> ops.lowRankBackward(dx, dy, torch.ones(5), null, rows, one, none)),
                refusal("h is", ops -> ops.lowRankBackward(dx, dy, x, torch.ones(3, 1), rows, one, none)),
                refusal("h is", ops -> ops.lowRankBackward(dx, dy, x, torch.ones(2, 2), rows, one, none)),
                refusal("rows has 2", ops -> ops.lowRankBackward(dx, dy, x, null, new int[2], one, none)),
                refusal("rows[2] is 1", ops -> ops.lowRankBackward(dx, dy, x, null, new int[] {0, 0, 1}, one, none)),
                refusal("gradients has 0", ops -> ops.lowRankBackward(dx, dy, x, null, rows, one, List.of())),
                refusal(
                        "adapters[0]",
                        ops -> ops.lowRankBackward(dx, dy, x, null, rows, List.of(samples.lowRank(2, 4, 4)), none)),
                refusal(
                        "adapters[0].a",
                        ops -> ops.lowRankBackward(
                                dx, dy, x, null, rows, List.of(new LowRank(dx.narrow(0, 0, 2), adapter.b(), 1)), none)),
                refusal(
                        "adapters[0].scale",
                        ops -> ops.lowRankBackward(
                                dx, dy, x, null, rows, List.of(new LowRank(adapter.a(), adapter.b(), 1e60)), none)),
                refusal(
                        "gradients[0].a is",
                        ops -> ops.lowRankBackward(dx, dy, x, null, rows, one, gradients(torch.ones(5, 2), null))),
                refusal(
                        "gradients[0].b has",
                        ops -> ops.lowRankBackward(
                                dx,
                                dy,
                                x,
                                null,
                                rows,
                                one,
                                gradients(null, torch.ones(4, 1).expand(4, 2)))),
                refusal(
                        "gradients[0].b shares memory with gradients[0].a",
                        ops -> ops.lowRankBackward(dx, dy, x, null, rows, one, gradients(first, second))),
                refusal(
                        "gradients[0].a shares memory with x",
                        ops -> ops.lowRankBackward(dx, dy, x, null, rows, one, gradients(x.narrow(0, 1, 2), null))),
                refusal(
                        "gradients[0].a shares memory with dx",
                        ops -> ops.lowRankBackward(dx, dy, x, null, rows, one, gradients(dx.narrow(0, 1, 2), null))));
    }

    private static List<LowRankGradient> gradients(Tensor a, Tensor b) {
        return List.of(new LowRankGradient(a, b));
    }

    private static Arguments refusal(String argument, Call call) {
        return Arguments.of(argument, call);
    }

    @ParameterizedTest
    @MethodSource("refusals")
    void namesABadArgument(String argument, Call call) {
        for (LoraOps ops : List.of(torchOps, nativeOps)) {
            assertThatThrownBy(() -> call.on(ops))
                    .as(ops.name())
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessageStartingWith(argument);
        }
    }
}
