package org.lora4j.ops;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.ArrayList;
import java.util.List;
import java.util.stream.LongStream;
import java.util.stream.Stream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Device;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Combinations of tensors: LibTorch's and the native ones give the same bits, which are those of the formulas. */
class CombineTest {
    private final LoraOps torchOps = Ops.named("torch");
    private final LoraOps nativeOps = Ops.named("native");

    static LongStream seeds() {
        return LongStream.range(0, 80);
    }

    @ParameterizedTest
    @MethodSource("seeds")
    void bothGiveTheSameBits(long seed) {
        try (PointerScope scope = new PointerScope()) {
            Samples samples = new Samples(seed);
            int[][] shapes = {{1, 1}, {3, 5}, {17, 64}, {100, 91}, {259, 130}, {0, 4}};
            int[] shape = shapes[samples.random().nextInt(shapes.length)];
            List<TaskTensor> tensors = new ArrayList<>();
            for (int i = samples.random().nextInt(4); i >= 0; i--) {
                Tensor tensor = samples.matrix(shape[0], shape[1]);
                if (samples.random().nextInt(3) == 0) {
                    tensor.copy_(tensor.round()); // many equal magnitudes, zeros among them
                }
                tensors.add(new TaskTensor(tensor, samples.scale(), pruning(samples)));
            }
            SignElection election = samples.pick(SignElection.values());
            Tensor y = samples.matrix(shape[0], shape[1]);

            torchOps.combine(y, tensors, election);
            float[] expected = Expected.floats(y);

            InstructionSets.each(isa -> {
                y.fill_(new Scalar(-7));
                nativeOps.combine(y, tensors, election);
                assertThat(Expected.floats(y)).as("seed %d, %s", seed, isa).isEqualTo(expected);
            });
            // In place of the first tensor, by both.
            Tensor copy = tensors.get(0).tensor().clone();
            List<TaskTensor> copied = new ArrayList<>(tensors);
            copied.set(
                    0,
                    new TaskTensor(copy, tensors.get(0).weight(), tensors.get(0).pruning()));
            torchOps.combine(copy, copied, election);
            Tensor target = tensors.get(0).tensor();
            nativeOps.combine(target, tensors, election);
            assertThat(Expected.floats(target)).as("seed %d, in place", seed).isEqualTo(Expected.floats(copy));
        }
    }

    private static Pruning pruning(Samples samples) {
        double density = samples.random().nextInt(5) == 0
                ? samples.random().nextInt(2)
                : samples.random().nextDouble();
        return switch (samples.random().nextInt(3)) {
            case 0 -> Pruning.none();
            case 1 -> Pruning.magnitude(density);
            default ->
                Pruning.random(
                        density,
                        samples.random().nextBoolean(),
                        samples.random().nextLong(),
                        samples.random().nextLong());
        };
    }

    /** The test vectors of Random123 for Philox 4x32-10; their counters do not begin at zero, except one. */
    @Test
    void theReferencesRandomWordsArePhilox() {
        Tensor words = TorchCombine.words(0, 0, 4, new Device("cpu"));
        assertThat(longs(words)).containsExactly(0x6627e8d5L, 0xe169c58dL, 0xbc57ac4cL, 0x9b00dbd8L);
    }

    private static long[] longs(Tensor tensor) {
        return LongStream.range(0, tensor.numel())
                .map(i -> tensor.select(0, i).item_long())
                .toArray();
    }

    @ParameterizedTest
    @ValueSource(strings = {"torch", "native"})
    void trimsAndElectsByHand(String name) {
        LoraOps ops = Ops.named(name);
        // Three fifths of five: the largest three, of the two of magnitude 2 the first.
        assertThat(Expected.floats(ops.trim(torch.tensor(1f, -2f, 5f, 2f, -3f), 0.6)))
                .containsExactly(0f, -2f, 5f, 0f, -3f);

        Tensor first = torch.tensor(3f, 1f, -4f, 0f);
        Tensor second = torch.tensor(1f, -2f, 2f, 5f);
        Tensor third = torch.tensor(2f, -6f, 1f, 0f);
        List<Tensor> all = List.of(first, second, third);
        double[] weights = {2, 1, 0.5};
        // Totals 6, -7, -1, 5: the elected means are (6 + 1 + 1) / 3, (-2 - 3) / 2, -8 and 5.
        assertThat(Expected.floats(ops.ties(all, weights, 1, SignElection.TOTAL)))
                .containsExactly(8f / 3, -2.5f, -8f, 5f);
        // Votes 3, -1, 1, 1.
        assertThat(Expected.floats(ops.ties(all, weights, 1, SignElection.FREQUENCY)))
                .containsExactly(8f / 3, -2.5f, (2f + 0.5f) / 2, 5f);
        assertThat(Expected.floats(ops.ties(all, weights, 1, SignElection.NONE)))
                .containsExactly(8f, -3f, -5.5f, 5f);
    }

    @ParameterizedTest
    @ValueSource(strings = {"torch", "native"})
    void takesTensorsOfAnyShape(String name) {
        LoraOps ops = Ops.named(name);
        Samples samples = new Samples(3);
        Tensor flat = samples.matrix(1, 120, ScalarType.Float, Samples.Layout.CONTIGUOUS);
        Tensor convolution = flat.view(2, 3, 4, 5);
        Tensor turned = convolution.permute(3, 0, 2, 1);
        float[] expected = Expected.floats(ops.trim(flat, 0.4));
        assertThat(Expected.floats(ops.trim(convolution, 0.4))).isEqualTo(expected);
        assertThat(Expected.floats(ops.trim(flat.view(120), 0.4))).isEqualTo(expected);
        assertThat(Tensors.shape(ops.trim(turned, 0.4))).isEqualTo(Tensors.shape(turned));
        assertThat(Expected.floats(ops.trim(turned, 0.4)))
                .isEqualTo(Expected.floats(ops.trim(turned.contiguous(), 0.4)));
        assertThat(ops.trim(torch.tensor(3f).reshape(new long[0]), 1).item_float())
                .isEqualTo(3f);
    }

    @ParameterizedTest
    @ValueSource(strings = {"torch", "native"})
    void randomPruningKeepsTheMean(String name) {
        LoraOps ops = Ops.named(name);
        Tensor ones = torch.ones(400, 500);
        Tensor pruned = ops.prune(ones, 0.25, true, 9, 0);
        double kept = pruned.ne(new Scalar(0)).to(ScalarType.Float).sum().item_double();
        assertThat(kept).isBetween(49000.0, 51000.0);
        assertThat(pruned.max().item_float()).isEqualTo(4f);
        assertThat(Expected.floats(ops.prune(ones, 0.25, true, 9, 1))).isNotEqualTo(Expected.floats(pruned));
        assertThat(Expected.floats(ops.prune(ones, 0.25, true, 9, 0))).isEqualTo(Expected.floats(pruned));
    }

    @Test
    void notANumberStaysInItsElement() {
        Tensor broken = torch.tensor(Float.NaN, 1f, Float.NEGATIVE_INFINITY, -2f);
        Tensor other = torch.tensor(1f, 1f, 1f, 1f);
        for (LoraOps ops : List.of(torchOps, nativeOps)) {
            float[] sum = Expected.floats(ops.ties(List.of(broken, other), new double[] {1, 1}, 1, SignElection.TOTAL));
            assertThat(sum).as(ops.name()).containsExactly(Float.NaN, 1f, Float.NEGATIVE_INFINITY, -2f);
            assertThat(Expected.floats(ops.trim(broken, 0.5)))
                    .as(ops.name())
                    .containsExactly(Float.NaN, 0f, Float.NEGATIVE_INFINITY, 0f);
        }
    }

    @Test
    void autogradSeesTheChange() {
        Tensor y = torch.zeros(2, 2);
        long version = y._version();
        nativeOps.combine(y, List.of(new TaskTensor(torch.ones(2, 2), 1)), SignElection.NONE);
        assertThat(y._version()).isGreaterThan(version);
    }

    private interface Call {
        void on(LoraOps ops);
    }

    private static Arguments refusal(String argument, Call call) {
        return Arguments.of(argument, call);
    }

    private static void combine(LoraOps ops, Tensor y, Tensor... tensors) {
        ops.combine(y, Stream.of(tensors).map(t -> new TaskTensor(t, 1)).toList(), SignElection.NONE);
    }

    static Stream<Arguments> refusals() {
        Tensor y = torch.ones(3, 4);
        Tensor x = torch.ones(3, 4);
        return Stream.of(
                refusal("y", ops -> combine(ops, new Tensor(), x)),
                refusal("y", ops -> combine(ops, y.to(ScalarType.Double), x)),
                refusal("y", ops -> combine(ops, torch.ones(1, 4).expand(3, 4), x)),
                refusal("y", ops -> combine(ops, torch.ones(2, 3, 4).permute(1, 0, 2), x)),
                refusal("tensors is empty", ops -> combine(ops, y)),
                refusal("tensors is empty", ops -> ops.combine(List.of(), SignElection.TOTAL)),
                refusal("tensors[1]", ops -> combine(ops, y, x, torch.ones(4, 3))),
                refusal("tensors[0]", ops -> combine(ops, y, x.to(ScalarType.Long))),
                refusal("tensors[0]", ops -> combine(ops, y, y.as_strided(new long[] {3, 4}, new long[] {1, 3}))),
                refusal(
                        "tensors[0].weight",
                        ops -> ops.combine(y, List.of(new TaskTensor(x, Double.NaN)), SignElection.NONE)),
                refusal("weights has 1", ops -> ops.ties(List.of(x, y), new double[1], 0.5, SignElection.TOTAL)),
                refusal("density is NaN", ops -> ops.trim(x, Double.NaN)),
                refusal("density is 1.5", ops -> ops.trim(x, 1.5)),
                refusal("density is -0.1", ops -> ops.prune(x, -0.1, true, 1, 1)));
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
