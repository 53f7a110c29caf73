package org.lora4j.ops;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.offset;

import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.stream.LongStream;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.LongOptional;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/** Merges with a factor for each row, and merges of weights stored as float8: by LibTorch and by every instruction set. */
class RescaledMergeTest {
    private static final int[] SIZES = {1, 5, 7, 16, 17, 63, 65, 130};
    private static final int[] RANKS = {1, 3, 8, 17};

    private final LoraOps torchOps = Ops.named("torch");
    private final LoraOps nativeOps = Ops.named("native");

    static LongStream seeds() {
        return LongStream.range(0, 40);
    }

    @ParameterizedTest
    @MethodSource("seeds")
    void multipliesTheSumBeforeItsOneRounding(long seed) {
        try (PointerScope scope = new PointerScope()) {
            Samples samples = new Samples(seed);
            int out = samples.pick(SIZES);
            int in = samples.pick(SIZES);
            ScalarType type = samples.pick(Samples.TYPES);
            Tensor from = samples.matrix(out, in, type, samples.pick(Samples.Layout.values()));
            Tensor weight = samples.matrix(out, in, type, samples.pick(Samples.Layout.values()));
            Tensor factors = samples.matrix(1, out, ScalarType.Float, Samples.Layout.CONTIGUOUS)
                    .flatten();
            List<LowRank> updates = updates(samples, out, in);

            Tensor sum = from.to(ScalarType.Float).contiguous();
            InstructionSets.each(isa -> {
                Tensor wide = sum.clone();
                nativeOps.merge(wide, updates);
                Tensor expected = wide.mul(factors.unsqueeze(1)).to(type);
                for (boolean check : new boolean[] {false, true}) {
                    weight.fill_(new Scalar(7));
                    assertThat(nativeOps.mergeRescaled(weight, from, updates, factors, check))
                            .isTrue();
                    assertThat(Expected.floats(weight))
                            .as("seed %d, %s", seed, isa)
                            .isEqualTo(Expected.floats(expected));
                }
            });
            assertThat(torchOps.mergeRescaled(weight, from, updates, factors, true))
                    .isTrue();
            close(
                    Expected.floats(weight),
                    Expected.floats(sum(from, updates).mul(factors.unsqueeze(1))),
                    type == ScalarType.Float ? 1e-4 : 0.02);

            // In place, and with a factor that spoils one row.
            factors.narrow(0, samples.random().nextInt(out), 1).fill_(new Scalar(Double.NaN));
            for (LoraOps ops : List.of(torchOps, nativeOps)) {
                assertThat(ops.mergeRescaled(weight, from, updates, factors, false))
                        .isTrue();
                assertThat(ops.mergeRescaled(from.clone(), from, updates, factors, true))
                        .isFalse();
                Tensor inPlace = from.clone();
                assertThat(ops.mergeRescaled(inPlace, inPlace, updates, factors, true))
                        .isFalse();
                assertThat(Expected.floats(inPlace)).isEqualTo(Expected.floats(weight));
            }
        }
    }

    @ParameterizedTest
    @MethodSource("seeds")
    void mergesWeightsStoredAsFloat8(long seed) {
        try (PointerScope scope = new PointerScope()) {
            Samples samples = new Samples(100 + seed);
            int out = samples.pick(SIZES);
            int in = samples.pick(SIZES);
            Tensor from = float8(samples.matrix(out, in, ScalarType.Float, samples.pick(Samples.Layout.values()))
                    .mul(new Scalar(samples.pick(1, 1, 100))));
            Tensor weight = samples.random().nextBoolean()
                    ? from.t().contiguous().clone().t()
                    : from.clone();
            List<LowRank> updates = updates(samples, out, in);
            Tensor wide = from.to(ScalarType.Float).contiguous();
            nativeOps.merge(wide, updates);
            byte[] expected = bytes(float8(wide));
            InstructionSets.each(isa -> {
                Tensor inPlace = weight.clone();
                nativeOps.merge(inPlace, updates);
                nativeOps.merge(weight, from, updates);
                assertThat(bytes(inPlace)).as("seed %d, %s", seed, isa).isEqualTo(expected);
                assertThat(bytes(weight)).as("seed %d, %s", seed, isa).isEqualTo(expected);
                weight.copy_(from);
            });
            torchOps.merge(weight, from, updates);
            int different = 0;
            byte[] reference = bytes(weight);
            for (int i = 0; i < reference.length; i++) {
                different += reference[i] == expected[i] ? 0 : 1;
            }
            assertThat(different).isLessThanOrEqualTo(1 + reference.length / 50);
        }
    }

    /** Every float8 number is kept by a merge of nothing, and what overflows is no number, as in LibTorch. */
    @Test
    void float8IsRoundedLikeLibTorch() {
        try (PointerScope scope = new PointerScope()) {
            Tensor all = torch.arange(new Scalar(256))
                    .to(ScalarType.Byte)
                    .view(ScalarType.Float8_e4m3fn)
                    .reshape(16, 16);
            Tensor ones = torch.ones(16, 1);
            LowRank nothing = new LowRank(torch.zeros(1, 16), ones, 1);
            Tensor kept = all.clone();
            nativeOps.merge(kept, List.of(nothing));
            assertThat(Expected.floats(kept.to(ScalarType.Float)))
                    .isEqualTo(Expected.floats(all.to(ScalarType.Float).add(new Scalar(0))));
            assertThat(nativeOps.mergeChecked(kept, all, List.of(nothing))).isFalse();

            Random values = new Random(5);
            for (int i = 0; i < 200; i++) {
                float step = (float) Math.scalb(values.nextGaussian(), values.nextInt(20) - 10);
                LowRank update = new LowRank(torch.full(new long[] {1, 16}, new Scalar(step)), ones, 1);
                nativeOps.merge(kept, all, List.of(update));
                Tensor expected = float8(all.to(ScalarType.Float).add(new Scalar(step)));
                assertThat(Expected.floats(kept.to(ScalarType.Float)))
                        .as("step %s", step)
                        .isEqualTo(Expected.floats(expected.to(ScalarType.Float)));
            }
        }
    }

    @Test
    void badArgumentsAreNamed() {
        try (PointerScope scope = new PointerScope()) {
            Samples samples = new Samples(3);
            Tensor weight = samples.matrix(4, 6, ScalarType.Float, Samples.Layout.CONTIGUOUS);
            Tensor from = samples.matrix(4, 6, ScalarType.Float, Samples.Layout.CONTIGUOUS);
            Tensor factors = torch.ones(4);
            List<LowRank> updates = List.of(samples.lowRank(2, 6, 4));
            for (LoraOps ops : List.of(torchOps, nativeOps)) {
                for (Tensor bad : List.of(
                        new Tensor(),
                        torch.ones(5),
                        torch.ones(4, 1),
                        torch.ones(8).slice(0, new LongOptional(0), new LongOptional(8), 2),
                        factors.to(ScalarType.BFloat16))) {
                    assertThatThrownBy(() -> ops.mergeRescaled(weight, from, updates, bad, true))
                            .isInstanceOf(IllegalArgumentException.class)
                            .hasMessageContaining("rowFactors");
                }
                assertThatThrownBy(() -> ops.mergeRescaled(
                                weight, from, updates, weight.flatten().narrow(0, 3, 4), true))
                        .hasMessageContaining("rowFactors shares memory");
                assertThatThrownBy(() -> ops.mergeRescaled(weight, from, List.of(), factors, true))
                        .hasMessageContaining("updates is empty");
                assertThatThrownBy(() -> ops.lowRankUpdate(float8(weight), from, new int[4], List.of()))
                        .hasMessageContaining("y is");
            }
        }
    }

    private static List<LowRank> updates(Samples samples, int out, int in) {
        List<LowRank> updates = new ArrayList<>();
        for (int i = samples.random().nextInt(3); i >= 0; i--) {
            updates.add(samples.lowRank(samples.pick(RANKS), in, out));
        }
        return updates;
    }

    private static Tensor sum(Tensor from, List<LowRank> updates) {
        Tensor sum = from.to(ScalarType.Double);
        for (LowRank each : updates) {
            sum = sum.add(
                    each.b().to(ScalarType.Double).matmul(each.a().to(ScalarType.Double)), new Scalar(each.scale()));
        }
        return sum;
    }

    private static void close(float[] actual, float[] expected, double relative) {
        for (int i = 0; i < expected.length; i++) {
            assertThat((double) actual[i]).isCloseTo(expected[i], offset(relative * (1 + Math.abs(expected[i]))));
        }
    }

    private static Tensor float8(Tensor tensor) {
        return tensor.to(ScalarType.Float8_e4m3fn);
    }

    private static byte[] bytes(Tensor tensor) {
        Tensor contiguous = tensor.contiguous();
        byte[] bytes = new byte[(int) contiguous.nbytes()];
        new BytePointer(contiguous.data_ptr()).get(bytes);
        return bytes;
    }
}
