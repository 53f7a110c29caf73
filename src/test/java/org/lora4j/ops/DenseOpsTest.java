package org.lora4j.ops;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.ArrayList;
import java.util.List;
import java.util.stream.LongStream;
import java.util.stream.Stream;
import org.bytedeco.javacpp.DoublePointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

/** Gram matrices, row norms, dequantizing and copies to pages: the native operations against LibTorch's. */
class DenseOpsTest {
    private static final int[] SIZES = {1, 2, 3, 5, 8, 16, 17, 33};
    private static final int[] WIDTHS = {1, 7, 8, 9, 31, 64, 65, 300};

    private final LoraOps torchOps = Ops.named("torch");
    private final LoraOps nativeOps = Ops.named("native");

    static LongStream seeds() {
        return LongStream.range(0, 30);
    }

    @ParameterizedTest
    @MethodSource("seeds")
    void gramsAgreeInDoublePrecision(long seed) {
        try (PointerScope scope = new PointerScope()) {
            Samples samples = new Samples(seed);
            int width = samples.pick(WIDTHS);
            Tensor x = samples.matrix(samples.pick(SIZES), width);
            Tensor y = seed % 3 == 0 ? x : samples.matrix(samples.pick(SIZES), width);
            double[] expected = doubles(torchOps.gram(x, y));
            double[] sizes = doubles(torchOps.gram(x.abs(), y.abs()));
            InstructionSets.each(isa -> {
                Tensor gram = nativeOps.gram(x, y);
                assertThat(Tensors.shape(gram)).containsExactly(x.size(0), y.size(0));
                double[] got = doubles(gram);
                for (int i = 0; i < got.length; i++) {
                    assertThat(Math.abs(got[i] - expected[i]))
                            .as("seed %d, %s, %d", seed, isa, i)
                            .isLessThanOrEqualTo(2 * width * 0x1p-53 * sizes[i]);
                }
            });
        }
    }

    private static double[] doubles(Tensor tensor) {
        assertThat(Tensors.type(tensor)).isEqualTo(ScalarType.Double);
        double[] values = new double[(int) tensor.numel()];
        new DoublePointer(tensor.contiguous().data_ptr()).get(values);
        return values;
    }

    @ParameterizedTest
    @MethodSource("seeds")
    void rowNormsAreThoseOfTheSum(long seed) {
        try (PointerScope scope = new PointerScope()) {
            Samples samples = new Samples(100 + seed);
            int in = samples.pick(WIDTHS);
            int out = samples.pick(SIZES);
            Tensor weight = samples.matrix(out, in);
            LowRank update = samples.lowRank(samples.pick(1, 2, 3, 8, 17), in, out);
            Tensor norms = samples.matrix(out, 1).select(1, 0);
            Tensor sum = weight.to(ScalarType.Double)
                    .add(update.b()
                            .to(ScalarType.Double)
                            .matmul(update.a().to(ScalarType.Double))
                            .mul(new Scalar((double) (float) update.scale())));
            double[] exact = doubles(sum.square().sum(1).sqrt());
            ScalarType type = Tensors.type(norms);
            double half = type == ScalarType.BFloat16 ? 0x1p-8 : type == ScalarType.Half ? 0x1p-11 : 0x1p-24;
            torchOps.rowNorms(norms, weight, update);
            near("seed " + seed + ", torch", norms, exact, half);
            InstructionSets.each(isa -> {
                norms.fill_(new Scalar(-3.0));
                nativeOps.rowNorms(norms, weight, update);
                near("seed " + seed + ", " + isa, norms, exact, half);
            });
        }
    }

    private static void near(String what, Tensor norms, double[] exact, double half) {
        double[] got = Expected.values(norms);
        for (int i = 0; i < got.length; i++) {
            assertThat(Math.abs(got[i] - exact[i]))
                    .as("%s, row %d: %g, expected %g", what, i, got[i], exact[i])
                    .isLessThanOrEqualTo(exact[i] * (half + 0x1p-24 + 1e-12) + 1e-7);
        }
    }

    @ParameterizedTest
    @MethodSource("seeds")
    void dequantizesToTheBitsOfLibTorch(long seed) {
        try (PointerScope scope = new PointerScope()) {
            Samples samples = new Samples(200 + seed);
            int rows = samples.pick(SIZES);
            int columns = samples.pick(WIDTHS);
            Tensor original = samples.matrix(rows, columns);
            FourBit values = samples.pick(FourBit.values());
            QuantizedWeight weight = seed % 3 == 0
                    ? Int8Weight.quantize(original)
                    : FourBitWeight.quantize(original, values, samples.pick(32, 64, 256), seed % 3 == 1);
            int first = samples.random().nextInt(rows + 1);
            Tensor target = samples.matrix(samples.random().nextInt(rows - first + 1), columns);
            torchOps.dequantize(target, weight, first);
            float[] expected = Expected.floats(target);
            assertThat(expected)
                    .isEqualTo(Expected.floats(weight.dequantize(Tensors.type(target), first, first + target.size(0))));
            InstructionSets.each(isa -> {
                target.fill_(new Scalar(77.0));
                nativeOps.dequantize(target, weight, first);
                assertThat(Expected.floats(target))
                        .as("seed %d, %s: %s", seed, isa, weight.description())
                        .isEqualTo(expected);
            });
        }
    }

    @ParameterizedTest
    @MethodSource("seeds")
    void pagesHoldTheSame(long seed) {
        try (PointerScope scope = new PointerScope()) {
            Samples samples = new Samples(300 + seed);
            List<Tensor> matrices = new ArrayList<>();
            long elements = 0;
            for (int i = samples.random().nextInt(4); i >= 0; i--) {
                matrices.add(samples.matrix(samples.pick(SIZES), samples.pick(WIDTHS)));
                elements += matrices.get(matrices.size() - 1).numel();
            }
            int pageSize = samples.pick(3, 64, 1000);
            int needed = (int) ((elements + pageSize - 1) / pageSize);
            int count = needed + 3;
            int[] pages =
                    samples.random().ints(0, count).distinct().limit(needed).toArray();
            Tensor pool = samples.matrix(count, pageSize, samples.pick(Samples.TYPES), Samples.Layout.CONTIGUOUS);
            Tensor start = pool.clone();
            torchOps.scatter(pool, pages, matrices);
            float[] expected = Expected.floats(pool);
            pool.copy_(start);
            nativeOps.scatter(pool, pages, matrices);
            assertThat(Expected.floats(pool)).as("seed %d", seed).isEqualTo(expected);

            List<float[]> back = new ArrayList<>();
            matrices.forEach(each -> each.fill_(new Scalar(5.0)));
            torchOps.gather(matrices, pool, pages);
            matrices.forEach(each -> back.add(Expected.floats(each)));
            matrices.forEach(each -> each.fill_(new Scalar(5.0)));
            nativeOps.gather(matrices, pool, pages);
            for (int i = 0; i < back.size(); i++) {
                assertThat(Expected.floats(matrices.get(i)))
                        .as("seed %d, %d", seed, i)
                        .isEqualTo(back.get(i));
            }
        }
    }

    private interface Call {
        void on(LoraOps ops);
    }

    private static Arguments refusal(String argument, Call call) {
        return Arguments.of(argument, call);
    }

    static Stream<Arguments> refusals() {
        Tensor w = torch.ones(3, 5);
        LowRank update = new LowRank(torch.ones(2, 5), torch.ones(3, 2), 1);
        Tensor norms = torch.ones(3);
        QuantizedWeight weight = Int8Weight.quantize(torch.ones(6, 5));
        Tensor pool = torch.zeros(4, 6);
        int[] pages = {3, 1, 0};
        return Stream.of(
                refusal("x is", ops -> ops.gram(w.to(ScalarType.Double), w)),
                refusal("y is", ops -> ops.gram(w, torch.ones(3, 4))),
                refusal("norms must", ops -> ops.rowNorms(torch.ones(3, 1), w, update)),
                refusal("norms is", ops -> ops.rowNorms(torch.ones(2), w, update)),
                refusal("norms has", ops -> ops.rowNorms(torch.ones(1).expand(3), w, update)),
                refusal("weight shares", ops -> ops.rowNorms(w.select(1, 0), w, update)),
                refusal("update is", ops -> ops.rowNorms(norms, torch.ones(3, 4), update)),
                refusal("update.scale", ops -> ops.rowNorms(norms, w, new LowRank(update.a(), update.b(), 1e99))),
                refusal("target is", ops -> ops.dequantize(torch.ones(2, 4), weight, 0)),
                refusal("target is", ops -> ops.dequantize(torch.ones(2, 5).to(ScalarType.Int), weight, 0)),
                refusal("firstRow is 4", ops -> ops.dequantize(w, weight, 4)),
                refusal("firstRow is -1", ops -> ops.dequantize(w, weight, -1)),
                refusal("pool is", ops -> ops.scatter(torch.zeros(6, 4).t(), pages, List.of(w))),
                refusal("pages has a page twice", ops -> ops.scatter(pool, new int[] {1, 2, 1}, List.of(w))),
                refusal("pages[1] is 4", ops -> ops.scatter(pool, new int[] {1, 4, 2}, List.of(w))),
                refusal("pages has 2", ops -> ops.gather(List.of(w), pool, new int[] {1, 2})),
                refusal("matrices[0] shares", ops -> ops.scatter(pool, pages, List.of(pool.narrow(0, 0, 2)))),
                refusal("matrices[0] shares", ops -> ops.gather(List.of(w, w), pool, new int[] {0, 1, 2, 3, 0})),
                refusal(
                        "matrices[0] has",
                        ops -> ops.gather(List.of(torch.ones(1, 5).expand(3, 5)), pool, pages)));
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
