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
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.lora4j.ops.binding.Lora4j;

/** The native kernels, with every instruction set of this CPU, against the exact result and against LibTorch. */
class NativeOpsTest {
    /** Around the register tiles (6 rows; 8, 16 or 64 columns), the lanes (16) and the blocks (192 rows, 96 rows). */
    private static final int[] EDGES = {1, 2, 5, 6, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 97, 127, 129, 193};

    private static final int[] RANKS = {1, 2, 3, 4, 7, 8, 9, 16, 17, 33};
    private static final List<String> INSTRUCTION_SETS = new ArrayList<>();

    private final LoraOps torchOps = Ops.named("torch");
    private final LoraOps nativeOps = Ops.named("native");

    @BeforeAll
    static void findInstructionSets() {
        NativeLibrary.load();
        for (String isa : List.of("plain", "avx2", "avx512")) {
            if (Lora4j.l4_set_cpu_isa(isa) == Lora4j.OK) {
                INSTRUCTION_SETS.add(isa);
            }
        }
        NativeLibrary.useInstructionSet(null);
        assertThat(INSTRUCTION_SETS).contains("plain");
    }

    @AfterEach
    void useTheBestInstructionSet() {
        NativeLibrary.useInstructionSet(null);
    }

    static LongStream seeds() {
        return LongStream.range(0, 60);
    }

    @ParameterizedTest
    @MethodSource("seeds")
    void mergesLikeTheExactResult(long seed) {
        try (PointerScope scope = new PointerScope()) {
            Samples samples = new Samples(seed);
            int out = samples.pick(EDGES);
            int in = samples.pick(EDGES);
            Tensor weight = samples.matrix(out, in);
            List<LowRank> updates = new ArrayList<>();
            for (int i = samples.random().nextInt(4); i >= 0; i--) {
                updates.add(samples.lowRank(samples.pick(RANKS), in, out));
            }
            Expected expected = Expected.merge(weight, updates);

            Tensor reference = copy(weight);
            torchOps.merge(reference, updates);
            expected.check("seed " + seed + ", torch", reference);
            sameBitsWithEveryInstructionSet("seed " + seed, weight, expected, w -> nativeOps.merge(w, updates));
        }
    }

    @ParameterizedTest
    @MethodSource("seeds")
    void mergesFromAnotherMatrixAndFindsWhatIsNotFinite(long seed) {
        try (PointerScope scope = new PointerScope()) {
            Samples samples = new Samples(2000 + seed);
            int out = samples.pick(EDGES);
            int in = samples.pick(EDGES);
            Tensor from = samples.matrix(out, in);
            Tensor weight = samples.matrix(out, in, Tensors.type(from), samples.pick(Samples.Layout.values()));
            List<LowRank> updates = new ArrayList<>();
            for (int i = samples.random().nextInt(3); i > 0; i--) {
                updates.add(samples.lowRank(samples.pick(RANKS), in, out));
            }
            float[] original = Expected.floats(from);
            Tensor inPlace = copy(from);
            nativeOps.merge(inPlace, updates);
            Expected expected = Expected.merge(from, updates);
            for (LoraOps ops : List.of(torchOps, nativeOps)) {
                ops.merge(weight, from, updates);
                expected.check("seed " + seed + ", " + ops.name(), weight);
                weight.fill_(new Scalar(7));
                assertThat(ops.mergeChecked(weight, from, updates)).isTrue();
                expected.check("seed " + seed + ", checked, " + ops.name(), weight);
                assertThat(Expected.floats(from)).isEqualTo(original);
            }
            assertThat(Expected.floats(weight)).isEqualTo(Expected.floats(inPlace));

            long row = samples.random().nextInt(out);
            long column = samples.random().nextInt(in);
            double spoilt = samples.random().nextBoolean() ? Double.NaN : Double.NEGATIVE_INFINITY;
            from.narrow(0, row, 1).narrow(1, column, 1).fill_(new Scalar(spoilt));
            for (LoraOps ops : List.of(torchOps, nativeOps)) {
                assertThat(ops.mergeChecked(weight, from, updates))
                        .as("seed %d, %s, %f at (%d, %d)", seed, ops.name(), spoilt, row, column)
                        .isFalse();
                assertThat(ops.mergeChecked(from, from, updates)).isFalse();
            }
        }
    }

    @ParameterizedTest
    @MethodSource("seeds")
    void updatesRowsLikeTheExactResult(long seed) {
        try (PointerScope scope = new PointerScope()) {
            Samples samples = new Samples(1000 + seed);
            int out = samples.pick(EDGES);
            int in = samples.pick(EDGES);
            int count = samples.pick(0, 1, 2, 3, 5, 6, 7, 12, 40, 97);
            Tensor y = samples.matrix(count, out);
            Tensor x = samples.matrix(count, in);
            List<LowRank> adapters = new ArrayList<>();
            for (int i = samples.random().nextInt(5); i > 0; i--) {
                adapters.add(samples.lowRank(samples.pick(RANKS), in, out));
            }
            int[] rows = samples.random().ints(count, -1, adapters.size()).toArray();
            Expected expected = Expected.lowRankUpdate(y, x, rows, adapters);

            Tensor reference = copy(y);
            torchOps.lowRankUpdate(reference, x, rows, adapters);
            expected.check("seed " + seed + ", torch", reference);
            sameBitsWithEveryInstructionSet(
                    "seed " + seed, y, expected, target -> nativeOps.lowRankUpdate(target, x, rows, adapters));
        }
    }

    private interface Operation {
        void on(Tensor target);
    }

    private static void sameBitsWithEveryInstructionSet(
            String what, Tensor target, Expected expected, Operation operation) {
        float[] first = null;
        for (String isa : INSTRUCTION_SETS) {
            NativeLibrary.useInstructionSet(isa);
            Tensor result = copy(target);
            operation.on(result);
            expected.check(what + ", " + isa, result);
            float[] values = Expected.floats(result);
            if (first != null) {
                assertThat(values)
                        .as(what + ", " + isa + " against " + INSTRUCTION_SETS.get(0))
                        .isEqualTo(first);
            }
            first = values;
        }
        // The target itself may be a view: its neighbours in memory must not change, which the copies cannot show.
        operation.on(target);
        assertThat(Expected.floats(target)).as(what + ", in place").isEqualTo(first);
    }

    /** A copy with the same strides. */
    private static Tensor copy(Tensor tensor) {
        if (tensor.numel() == 0 || tensor.is_contiguous()) {
            return tensor.clone();
        }
        return torch.empty_strided(Tensors.shape(tensor), strides(tensor), tensor.options())
                .copy_(tensor);
    }

    private static long[] strides(Tensor tensor) {
        return new long[] {tensor.stride(0), tensor.stride(1)};
    }

    @Test
    void leavesTheNeighboursOfAViewAlone() {
        Samples samples = new Samples(7);
        Tensor buffer = samples.matrix(40, 50, ScalarType.BFloat16, Samples.Layout.CONTIGUOUS);
        Tensor view = buffer.narrow(0, 3, 31).narrow(1, 5, 37);
        double[] before = Expected.values(buffer);

        nativeOps.merge(view, List.of(samples.lowRank(5, 37, 31)));

        double[] after = Expected.values(buffer);
        int changed = 0;
        for (int i = 0; i < before.length; i++) {
            int row = i / 50;
            int column = i % 50;
            if (row >= 3 && row < 34 && column >= 5 && column < 42) {
                changed += before[i] != after[i] ? 1 : 0;
            } else {
                assertThat(after[i]).as("element (%d, %d)", row, column).isEqualTo(before[i]);
            }
        }
        assertThat(changed).isGreaterThan(31 * 37 / 2);
    }

    @Test
    void theResultDoesNotDependOnTheThreadCount() {
        Samples samples = new Samples(11);
        Tensor weight = samples.matrix(500, 1100, ScalarType.Half, Samples.Layout.CONTIGUOUS);
        List<LowRank> updates = List.of(samples.lowRank(16, 1100, 500), samples.lowRank(3, 1100, 500));
        int threads = torch.get_num_threads();
        float[] first = null;
        try {
            for (int count : new int[] {1, 2, 3, 7}) {
                torch.set_num_threads(count);
                Tensor result = weight.clone();
                nativeOps.merge(result, updates);
                assertThat(first == null || Arrays.equals(first, Expected.floats(result)))
                        .as("%d threads", count)
                        .isTrue();
                first = Expected.floats(result);
            }
        } finally {
            torch.set_num_threads(threads);
        }
    }

    @Test
    void aRowDoesNotDependOnTheOthers() {
        Samples samples = new Samples(13);
        List<LowRank> adapters = List.of(samples.lowRank(9, 77, 130), samples.lowRank(16, 77, 130));
        Tensor x = samples.matrix(200, 77, ScalarType.BFloat16, Samples.Layout.CONTIGUOUS);
        Tensor y = samples.matrix(200, 130, ScalarType.Float, Samples.Layout.CONTIGUOUS);
        int[] rows = samples.random().ints(200, -1, 2).toArray();
        Tensor together = y.clone();
        nativeOps.lowRankUpdate(together, x, rows, adapters);

        for (int t = 0; t < 200; t += 11) {
            Tensor alone = y.narrow(0, t, 1).clone();
            nativeOps.lowRankUpdate(alone, x.narrow(0, t, 1), new int[] {rows[t]}, adapters);
            assertThat(Expected.floats(alone)).as("row %d", t).isEqualTo(Expected.floats(together.narrow(0, t, 1)));
        }
    }

    @Test
    void aNotANumberStaysInItsRow() {
        Samples samples = new Samples(17);
        LowRank broken = new LowRank(torch.full(new long[] {2, 20}, new Scalar(Double.NaN)), samples.matrix(9, 2), 1);
        List<LowRank> adapters = List.of(samples.lowRank(3, 20, 9), broken);
        Tensor y = samples.matrix(3, 9, ScalarType.Half, Samples.Layout.CONTIGUOUS);
        nativeOps.lowRankUpdate(y, samples.matrix(3, 20), new int[] {0, 1, -1}, adapters);

        float[] values = Expected.floats(y);
        for (int i = 0; i < values.length; i++) {
            assertThat(Float.isNaN(values[i])).as("element %d", i).isEqualTo(i / 9 == 1);
        }
    }

    @Test
    void theComparisonRefusesAWrongResult() {
        Samples samples = new Samples(19);
        Tensor weight = samples.matrix(9, 17, ScalarType.BFloat16, Samples.Layout.CONTIGUOUS);
        LowRank update = samples.lowRank(4, 17, 9);
        Expected expected = Expected.merge(weight, List.of(update));
        Tensor twice = weight.clone();
        nativeOps.merge(twice, List.of(new LowRank(update.a(), update.b(), update.scale() * 1.05)));
        assertThatThrownBy(() -> expected.check("scale off by 5 %", twice)).isInstanceOf(AssertionError.class);
        Tensor last = weight.clone();
        nativeOps.merge(last, List.of(update));
        expected.check("right", last);
        Tensor corner = last.narrow(0, 8, 1).narrow(1, 16, 1);
        corner.copy_(corner.mul(new Scalar(1.03)));
        assertThatThrownBy(() -> expected.check("last element off by 3 %", last))
                .isInstanceOf(AssertionError.class);
    }

    @Test
    void autogradSeesTheChange() {
        Samples samples = new Samples(23);
        Tensor weight = samples.matrix(4, 5, ScalarType.Float, Samples.Layout.CONTIGUOUS);
        weight.requires_grad_(true);
        long version = weight._version();
        nativeOps.merge(weight, List.of(samples.lowRank(2, 5, 4)));
        assertThat(weight._version()).isGreaterThan(version);
        assertThat(weight.requires_grad()).isTrue();
        assertThat(weight.is_leaf()).isTrue();
    }

    static Stream<Arguments> refusals() {
        Samples samples = new Samples(29);
        Tensor x = samples.matrix(2, 5, ScalarType.Float, Samples.Layout.CONTIGUOUS);
        Tensor y = samples.matrix(2, 3, ScalarType.Float, Samples.Layout.CONTIGUOUS);
        Tensor wide = samples.matrix(5, 5, ScalarType.Float, Samples.Layout.CONTIGUOUS);
        LowRank update = samples.lowRank(2, 5, 3);
        LowRank other = samples.lowRank(2, 4, 3);
        return Stream.of(
                refusal("weight", ops -> ops.merge(samples.matrix(3, 5).to(ScalarType.Double), List.of(update))),
                refusal("weight", ops -> ops.merge(samples.matrix(1, 5).reshape(5), List.of(update))),
                refusal("weight", ops -> ops.merge(torch.zeros(1, 5).expand(3, 5), List.of(update))),
                refusal("weight", ops -> ops.merge(new Tensor(), List.of(update))),
                refusal("updates[1]", ops -> ops.merge(samples.matrix(3, 5), List.of(update, other))),
                refusal(
                        "updates[0].a",
                        ops -> ops.merge(wide, List.of(new LowRank(wide.narrow(0, 1, 2), samples.matrix(5, 2), 1)))),
                refusal(
                        "updates[0].scale",
                        ops -> ops.merge(
                                samples.matrix(3, 5), List.of(new LowRank(update.a(), update.b(), Double.NaN)))),
                refusal("from", ops -> ops.merge(samples.matrix(3, 5), samples.matrix(3, 4), List.of(update))),
                refusal(
                        "from",
                        ops -> ops.mergeChecked(wide, wide.to(ScalarType.BFloat16), List.of(samples.lowRank(1, 5, 5)))),
                refusal(
                        "from shares memory",
                        ops -> ops.mergeChecked(
                                wide.narrow(0, 0, 3), wide.narrow(0, 1, 3), List.of(samples.lowRank(1, 5, 3)))),
                refusal("from", ops -> ops.merge(samples.matrix(3, 5), new Tensor(), List.of())),
                refusal("y", ops -> ops.lowRankUpdate(y.to(ScalarType.Int), x, new int[2], List.of(update))),
                refusal("x", ops -> ops.lowRankUpdate(y, x.narrow(0, 0, 1), new int[2], List.of(update))),
                refusal("x and y", ops -> ops.lowRankUpdate(wide, wide, new int[5], List.of(samples.lowRank(1, 5, 5)))),
                refusal("rows has 3", ops -> ops.lowRankUpdate(y, x, new int[3], List.of(update))),
                refusal("rows[1] is 1", ops -> ops.lowRankUpdate(y, x, new int[] {0, 1}, List.of(update))),
                refusal("rows[0] is -2", ops -> ops.lowRankUpdate(y, x, new int[] {-2, 0}, List.of(update))),
                refusal("adapters[0]", ops -> ops.lowRankUpdate(y, x, new int[2], List.of(other))),
                refusal(
                        "adapters[0].b",
                        ops -> ops.lowRankUpdate(
                                y,
                                x,
                                new int[2],
                                List.of(new LowRank(update.a(), update.b().to(ScalarType.Long), 1)))));
    }

    private interface Call {
        void on(LoraOps ops);
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

    @Test
    void columnBlocksOfOneBufferAreApart() {
        Samples samples = new Samples(31);
        Tensor buffer = samples.matrix(4, 12, ScalarType.Float, Samples.Layout.CONTIGUOUS);
        Tensor y = buffer.narrow(1, 0, 5);
        Tensor x = buffer.narrow(1, 5, 7);
        int[] rows = {0, -1, 0, 0};
        List<LowRank> adapters = List.of(samples.lowRank(3, 7, 5));
        Expected expected = Expected.lowRankUpdate(y, x, rows, adapters);
        nativeOps.lowRankUpdate(y, x, rows, adapters);
        expected.check("column blocks", y);
    }

    @Test
    void anUnknownInstructionSetIsRefused() {
        assertThatThrownBy(() -> NativeLibrary.useInstructionSet("sse9"))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessageContaining("lora4j.cpu=sse9");
    }

    @Test
    void describesItself() {
        assertThat(nativeOps.description()).startsWith("native: ").contains("threads", "CUDA");
        assertThat(Ops.current().name()).isEqualTo(System.getProperty("lora4j.ops", "native"));
    }
}
