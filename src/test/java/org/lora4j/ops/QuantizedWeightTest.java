package org.lora4j.ops;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.Arrays;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;

/** Quantized weights against arithmetic in double precision. QuantizedFilesTest holds them to bitsandbytes. */
class QuantizedWeightTest {
    private PointerScope scope;

    @BeforeEach
    void open() {
        LibTorch.load();
        scope = new PointerScope();
    }

    @AfterEach
    void close() {
        scope.close();
    }

    private static int[] bytes(Tensor tensor) {
        byte[] bytes = new byte[(int) tensor.nbytes()];
        new BytePointer(tensor.contiguous().data_ptr()).get(bytes);
        return IntStream.range(0, bytes.length).map(i -> bytes[i] & 255).toArray();
    }

    private static int code(int[] packed, int element) {
        return element % 2 == 0 ? packed[element / 2] >> 4 : packed[element / 2] & 15;
    }

    static Stream<Arguments> shapes() {
        int[][] shapes = {{1, 1}, {3, 5}, {1, 64}, {7, 19}, {5, 64}, {33, 31}, {2, 4097}};
        return IntStream.range(0, 4 * shapes.length).mapToObj(i -> Arguments.of(i, shapes[i % shapes.length]));
    }

    @ParameterizedTest
    @MethodSource("shapes")
    void everyCodeIsTheNearest(int seed, int[] shape) {
        Samples samples = new Samples(seed);
        FourBit values = samples.pick(FourBit.values());
        int size = samples.pick(32, 64, 128, 4096);
        Tensor weight = samples.matrix(shape[0], shape[1]);
        FourBitWeight quantized = FourBitWeight.quantize(weight, values, size, false);
        double[] elements = Expected.values(weight);
        float[] scales = Expected.floats(quantized.scales().values());
        double[] back = Expected.values(quantized.dequantize(ScalarType.Float));
        float[] table = values.codeValues();
        int[] packed = bytes(quantized.packed());
        assertThat(packed).hasSize((elements.length + 1) / 2);
        for (int i = 0; i < elements.length; i++) {
            int block = i / size;
            double largest = Arrays.stream(elements, block * size, Math.min(elements.length, (block + 1) * size))
                    .map(Math::abs)
                    .max()
                    .getAsDouble();
            assertThat((double) scales[block]).isEqualTo(largest);
            double unit = elements[i] / largest;
            double nearest = IntStream.range(0, 16)
                    .mapToDouble(c -> Math.abs(unit - table[c]))
                    .min()
                    .getAsDouble();
            float chosen = table[code(packed, i)];
            assertThat(Math.abs(unit - chosen))
                    .as("seed %d, %s, element %d of %s", seed, values, i, Tensors.describe(weight))
                    .isLessThanOrEqualTo(nearest + 0x1p-22);
            assertThat(back[i]).isEqualTo((double) (chosen * scales[block]));
        }
        if (elements.length % 2 == 1) {
            assertThat(table[packed[packed.length - 1] & 15])
                    .as("the code after the last")
                    .isZero();
        }
    }

    @Test
    void ofTwoEquallyNearValuesTheLesserIsTaken() {
        float[] table = FourBit.NF4.codeValues();
        float[] halfway = new float[16];
        for (int i = 0; i < 15; i++) {
            halfway[i] = (table[i] + table[i + 1]) / 2;
        }
        halfway[15] = 1;
        FourBitWeight quantized = FourBitWeight.quantize(torch.tensor(halfway).view(1, 16), FourBit.NF4, 64, false);
        int[] packed = bytes(quantized.packed());
        assertThat(IntStream.range(0, 16).map(i -> code(packed, i)))
                .containsExactly(IntStream.range(0, 16).boxed().toArray(Integer[]::new));
    }

    @Test
    void theValuesOfNf4AreQuantilesOfTheNormalDistribution() {
        // bitsandbytes: the probabilities run evenly from 0.9677083 to one half, seven steps below zero, eight above.
        double[] expected = new double[16];
        for (int i = 0; i < 7; i++) {
            expected[i] = -quantile(0.9677083 - i * (0.9677083 - 0.5) / 7);
        }
        for (int i = 0; i < 8; i++) {
            expected[15 - i] = quantile(0.9677083 - i * (0.9677083 - 0.5) / 8);
        }
        float[] table = FourBit.NF4.codeValues();
        for (int i = 0; i < 16; i++) {
            assertThat((double) table[i]).isCloseTo(expected[i] / quantile(0.9677083), within());
        }
    }

    private static org.assertj.core.data.Offset<Double> within() {
        return org.assertj.core.data.Offset.offset(1e-6);
    }

    /** Where the distribution function of N(0, 1) has the value p, for p of at least one half. */
    private static double quantile(double p) {
        double low = 0;
        double high = 4;
        for (int i = 0; i < 60; i++) {
            double middle = (low + high) / 2;
            if (0.5 + integral(middle) < p) {
                low = middle;
            } else {
                high = middle;
            }
        }
        return low;
    }

    /** The density of N(0, 1) from 0 to x, by Simpson's rule. */
    private static double integral(double x) {
        int steps = 400;
        double sum = 0;
        for (int i = 0; i <= steps; i++) {
            double at = x * i / steps;
            sum += (i == 0 || i == steps ? 1 : i % 2 == 1 ? 4 : 2) * Math.exp(-at * at / 2);
        }
        return sum * x / steps / 3 / Math.sqrt(2 * Math.PI);
    }

    @ParameterizedTest
    @EnumSource(FourBit.class)
    void noElementIsFartherThanHalfTheWidestGap(FourBit values) {
        float[] table = values.codeValues();
        Arrays.sort(table);
        double gap = IntStream.range(0, 15)
                .mapToDouble(i -> table[i + 1] - table[i])
                .max()
                .getAsDouble();
        for (int seed = 0; seed < 6; seed++) {
            Samples samples = new Samples(seed);
            Tensor weight = samples.matrix(37, 101).mul(new Scalar(samples.scale()));
            int size = samples.pick(32, 64, 256);
            boolean nested = seed % 2 == 1;
            FourBitWeight quantized = FourBitWeight.quantize(weight, values, size, nested);
            double[] before = Expected.values(weight);
            double[] after = Expected.values(quantized.dequantize(ScalarType.Float));
            double[] exact = Expected.values(
                    FourBitWeight.quantize(weight, values, size, false).scales().values());
            double[] stored = Expected.values(quantized.scales().dequantize(0, exact.length));
            for (int i = 0; i < before.length; i++) {
                double scale = exact[i / size];
                double bound = gap / 2 * scale + Math.abs(stored[i / size] - scale) + 1e-6 * scale;
                assertThat(Math.abs(after[i] - before[i]))
                        .as("seed %d, element %d", seed, i)
                        .isLessThanOrEqualTo(bound);
            }
        }
    }

    @Test
    void quantizedScalesAreWithinHalfAStepOfTheDynamicType() {
        double[] map = Expected.values(DynamicMap.values());
        assertThat(map)
                .hasSize(256)
                .isSorted()
                .doesNotHaveDuplicates()
                .contains(0, 1)
                .doesNotContain(-1);
        for (int blocks : new int[] {1, 2, 255, 256, 257, 1000}) {
            Samples samples = new Samples(blocks);
            Tensor scales = samples.matrix(1, blocks, ScalarType.Float, Samples.Layout.CONTIGUOUS)
                    .abs()
                    .view(-1);
            BlockScales quantized = BlockScales.quantize(scales);
            double[] before = Expected.values(scales);
            double[] after = Expected.values(quantized.dequantize(0, blocks));
            int[] codes = bytes(quantized.values());
            double mean = Arrays.stream(before).average().getAsDouble();
            BlockScales.Nested nested = quantized.nested();
            assertThat(nested.offset()).isCloseTo(mean, org.assertj.core.data.Offset.offset(1e-6));
            assertThat(nested.scales().numel()).isEqualTo((blocks + 255) / 256);
            double[] largest = Expected.values(nested.scales());
            for (int i = 0; i < blocks; i++) {
                double unit = largest[i / 256] == 0 ? 0 : (before[i] - nested.offset()) / largest[i / 256];
                double nearest =
                        Arrays.stream(map).map(m -> Math.abs(unit - m)).min().getAsDouble();
                assertThat(Math.abs(unit - map[codes[i]])).isLessThanOrEqualTo(nearest + 1e-6);
                assertThat(after[i])
                        .isCloseTo(
                                map[codes[i]] * largest[i / 256] + nested.offset(),
                                org.assertj.core.data.Offset.offset(1e-6));
            }
            // A part of the scales, which begins inside a nested block.
            int first = blocks / 3;
            int count = Math.max(1, blocks / 2);
            assertThat(Expected.values(quantized.dequantize(first, count)))
                    .isEqualTo(Arrays.copyOfRange(after, first, first + count));
        }
    }

    @Test
    void blocksOfZerosStayZeroAndDoNotDisturbOthers() {
        Tensor weight = new Samples(4).matrix(4, 64, ScalarType.Float, Samples.Layout.CONTIGUOUS);
        weight.select(0, 1).zero_();
        for (boolean nested : new boolean[] {false, true}) {
            Tensor back =
                    FourBitWeight.quantize(weight, FourBit.NF4, 64, nested).dequantize(ScalarType.Float);
            assertThat(Expected.values(back.select(0, 1))).containsOnly(0.0);
            assertThat(back.select(0, 0).abs().max().item_double()).isGreaterThan(0.5);
        }
        Tensor nothing = torch.zeros(3, 3);
        for (QuantizedWeight each : new QuantizedWeight[] {
            FourBitWeight.quantize(nothing, FourBit.FP4, 64, true), Int8Weight.quantize(nothing)
        }) {
            assertThat(Expected.values(each.dequantize(ScalarType.Float))).containsOnly(0.0);
        }
    }

    @Test
    void scalesTooSmallForAReciprocalDoNotOverflow() {
        Tensor weight = torch.full(new long[] {2, 32}, new Scalar(1e-39));
        Tensor back = FourBitWeight.quantize(weight, FourBit.NF4, 32, false).dequantize(ScalarType.Float);
        assertThat(torch.isfinite(back).all().item_bool()).isTrue();
        assertThat(back.abs().max().item_double()).isLessThanOrEqualTo(1.01e-39);
    }

    @ParameterizedTest
    @EnumSource(Samples.Layout.class)
    void stridesAndTypesDoNotMatter(Samples.Layout layout) {
        for (ScalarType type : Samples.TYPES) {
            Tensor weight = new Samples(9).matrix(6, 35, type, layout);
            Tensor copy = weight.contiguous().to(ScalarType.Float);
            FourBitWeight quantized = FourBitWeight.quantize(weight, FourBit.NF4, 64, true);
            assertThat(quantized.dtype()).isEqualTo(type);
            assertThat(quantized
                            .packed()
                            .equal(FourBitWeight.quantize(copy, FourBit.NF4, 64, true)
                                    .packed()))
                    .isTrue();
            assertThat(Int8Weight.quantize(weight)
                            .packed()
                            .equal(Int8Weight.quantize(copy).packed()))
                    .isTrue();
        }
    }

    @Test
    void rowsAreThoseOfTheWholeWeight() {
        Tensor weight = new Samples(2).matrix(13, 37, ScalarType.BFloat16, Samples.Layout.CONTIGUOUS);
        for (QuantizedWeight quantized : new QuantizedWeight[] {
            FourBitWeight.quantize(weight, FourBit.NF4, 64, true),
            FourBitWeight.quantize(weight, FourBit.FP4, 32, false),
            Int8Weight.quantize(weight)
        }) {
            for (ScalarType type :
                    new ScalarType[] {ScalarType.Float, ScalarType.BFloat16, ScalarType.Half, ScalarType.Double}) {
                Tensor whole = quantized.dequantize(type);
                assertThat(Tensors.describe(whole)).isEqualTo(type + "[13, 37]");
                assertThat(whole.equal(quantized.dequantize(ScalarType.Float).to(type)))
                        .isTrue();
                for (int from = 0; from <= 13; from++) {
                    for (int to = from; to <= 13; to++) {
                        Tensor rows = quantized.dequantize(type, from, to);
                        assertThat(rows.equal(whole.narrow(0, from, to - from)))
                                .as("rows %d to %d of %s", from, to, quantized.description())
                                .isTrue();
                    }
                }
            }
            assertThatThrownBy(() -> quantized.dequantize(ScalarType.Float, 3, 14))
                    .hasMessageContaining("rows 3 to 14 are asked for, but the weight has 13");
        }
    }

    @Test
    void largeWeightsAreWorkedOnInTiles() {
        Tensor weight = torch.randn(1031, 1033);
        FourBitWeight quantized = FourBitWeight.quantize(weight, FourBit.NF4, 64, true);
        Tensor whole = quantized.dequantize(ScalarType.Float);
        double error = whole.sub(weight).abs().max().item_double();
        assertThat(error).isLessThan(0.16 * weight.abs().max().item_double());
        for (int row : new int[] {0, 1014, 1015, 1016, 1030}) {
            assertThat(quantized.dequantize(ScalarType.Float, row, row + 1).equal(whole.narrow(0, row, 1)))
                    .isTrue();
        }
        // The elements after the first tile, quantized by themselves.
        Tensor rest =
                weight.view(-1).narrow(0, 1 << 20, weight.numel() - (1 << 20)).view(1, -1);
        FourBitWeight alone = FourBitWeight.quantize(rest, FourBit.NF4, 64, false);
        assertThat(quantized.packed().narrow(0, 1 << 19, alone.packed().size(0)).equal(alone.packed()))
                .isTrue();
    }

    @Test
    void eightBitsAreTheNearestOf255() {
        for (int seed = 0; seed < 8; seed++) {
            Samples samples = new Samples(seed);
            Tensor weight = samples.matrix(samples.pick(1, 3, 8), samples.pick(1, 17, 64));
            Int8Weight quantized = Int8Weight.quantize(weight);
            double[] elements = Expected.values(weight.to(ScalarType.Half));
            float[] scales = Expected.floats(quantized.scales());
            double[] codes = Expected.values(quantized.packed());
            double[] back = Expected.values(quantized.dequantize(ScalarType.Float));
            int columns = (int) weight.size(1);
            for (int i = 0; i < elements.length; i++) {
                double scale = scales[i / columns];
                assertThat(Math.abs(codes[i] - elements[i] * 127 / scale))
                        .as("seed %d", seed)
                        .isLessThanOrEqualTo(0.5 + 1e-4);
                assertThat(back[i])
                        .isCloseTo(codes[i] * scale / 127, org.assertj.core.data.Offset.offset(1e-6 * scale));
            }
        }
    }

    @Test
    void anEmptyWeightIsNoSpecialCase() {
        Tensor weight = torch.zeros(0, 5);
        assertThat(FourBitWeight.quantize(weight, FourBit.NF4, 64, true)
                        .dequantize(ScalarType.Float)
                        .numel())
                .isZero();
        assertThat(Int8Weight.quantize(weight).dequantize(ScalarType.Float).numel())
                .isZero();
    }

    @Test
    void whatCannotBeQuantizedIsRefused() {
        Tensor weight = torch.randn(3, 40);
        assertThatThrownBy(() -> FourBitWeight.quantize(weight, FourBit.NF4, 48, false))
                .hasMessageContaining("blockSize is 48 but must be a power of two from 32 to 4096");
        assertThatThrownBy(() -> FourBitWeight.quantize(weight.to(ScalarType.Double), FourBit.NF4, 64, false))
                .hasMessageContaining("must be Float, BFloat16 or Half (out, in), but is Double[3, 40]");
        assertThatThrownBy(() -> Int8Weight.quantize(weight.view(-1))).hasMessageContaining("but is Float[120]");
        for (double bad : new double[] {Double.NaN, Double.POSITIVE_INFINITY, Double.NEGATIVE_INFINITY}) {
            Tensor broken = weight.clone();
            broken.select(0, 2).select(0, 39).fill_(new Scalar(bad));
            assertThatThrownBy(() -> FourBitWeight.quantize(broken, FourBit.NF4, 64, true))
                    .isInstanceOf(ArithmeticException.class)
                    .hasMessageContaining("NaN or infinity");
            assertThatThrownBy(() -> Int8Weight.quantize(broken))
                    .isInstanceOf(ArithmeticException.class)
                    .hasMessageContaining("NaN, infinity");
        }
        assertThatThrownBy(() -> Int8Weight.quantize(weight.mul(new Scalar(1e6)).to(ScalarType.BFloat16)))
                .hasMessageContaining("beyond 65504");
    }

    @Test
    void tensorsThatDoNotBelongTogetherAreRefused() {
        FourBitWeight good = FourBitWeight.quantize(torch.randn(4, 40), FourBit.NF4, 64, true);
        assertThatThrownBy(() ->
                        new FourBitWeight(good.values(), good.packed(), good.scales(), 64, 4, 42, ScalarType.Float))
                .hasMessageContaining("42 inputs and 4 outputs must be Byte[84, 1], but is Byte[80, 1]");
        assertThatThrownBy(() ->
                        new FourBitWeight(good.values(), good.packed(), good.scales(), 32, 4, 40, ScalarType.Float))
                .hasMessageContaining("absmax has 3 scales, but a weight of 4 x 40 has 5 blocks of 32");
        BlockScales.Nested nested = good.scales().nested();
        assertThatThrownBy(() -> new BlockScales(good.scales().values(), null))
                .hasMessageContaining("absmax must be Float[blocks], but is Byte[3]");
        assertThatThrownBy(() -> new BlockScales(
                        good.scales().values(),
                        new BlockScales.Nested(nested.scales(), nested.map(), nested.offset(), 2)))
                .hasMessageContaining("nested_absmax must be Float[2], but is Float[1]");
        assertThatThrownBy(() -> new Int8Weight(torch.zeros(2, 2).to(ScalarType.Char), torch.zeros(3), ScalarType.Half))
                .hasMessageContaining("SCB must be Float[2], but is Float[3]");
        assertThatThrownBy(() -> good.requantize(torch.randn(4, 41))).hasMessageContaining("must be (4, 40)");
        assertThatThrownBy(() -> FourBit.of("int4")).hasMessageContaining("must be nf4 or fp4");
    }

    @Test
    void requantizingKeepsTheForm() {
        Tensor weight = torch.randn(6, 50);
        Tensor other = torch.randn(6, 50).to(ScalarType.BFloat16);
        FourBitWeight four =
                FourBitWeight.quantize(weight, FourBit.FP4, 128, true).requantize(other);
        assertThat(four.description()).isEqualTo("fp4, blocks of 128, double quantization");
        assertThat(four.packed()
                        .equal(FourBitWeight.quantize(other, FourBit.FP4, 128, true)
                                .packed()))
                .isTrue();
        Int8Weight eight = Int8Weight.quantize(weight).requantize(other);
        assertThat(eight.packed().equal(Int8Weight.quantize(other).packed())).isTrue();
        assertThat(eight.description()).isEqualTo("int8, a scale per row");
    }

    @Test
    void memoryIsWhatTheFormatNeeds() {
        Tensor weight = torch.randn(128, 256);
        long elements = 128 * 256;
        assertThat(FourBitWeight.quantize(weight, FourBit.NF4, 64, false).bytes())
                .isEqualTo(elements / 2 + elements / 64 * 4);
        assertThat(FourBitWeight.quantize(weight, FourBit.NF4, 64, true).bytes())
                .isEqualTo(elements / 2 + elements / 64 + 2 * 4 + 256 * 4);
        assertThat(Int8Weight.quantize(weight).bytes()).isEqualTo(elements + 128 * 4);
    }

    @Test
    void whatIsKeptOutlivesTheScopeAndTheRestDoesNot() {
        QuantizedWeight kept;
        QuantizedWeight lost;
        try (PointerScope inner = new PointerScope()) {
            lost = FourBitWeight.quantize(torch.randn(4, 40), FourBit.NF4, 64, true);
            kept = FourBitWeight.quantize(torch.randn(4, 40), FourBit.NF4, 64, true)
                    .keep();
        }
        assertThat(lost.tensors()).allMatch(each -> each.isNull());
        assertThat(kept.tensors()).noneMatch(each -> each.isNull());
        assertThat(kept.dequantize(ScalarType.Float).numel()).isEqualTo(160);
        kept.close();
        assertThat(kept.tensors()).allMatch(each -> each.isNull());
    }

    @Test
    void aResultFreedByHandIsFreedAtOnce() {
        QuantizedWeight weight = FourBitWeight.quantize(torch.randn(4, 40), FourBit.NF4, 64, true);
        Tensor dense = weight.dequantize(ScalarType.Float);
        Tensor other = torch.empty(0).set_(dense);
        long before = other.storage().use_count();
        dense.close();
        assertThat(other.storage().use_count()).isLessThan(before);
        assertThat(other.storage().use_count()).as("who holds the memory").isEqualTo(1);
    }
}
