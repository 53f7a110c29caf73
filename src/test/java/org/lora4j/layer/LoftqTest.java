package org.lora4j.layer;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.HashSet;
import java.util.Set;
import java.util.stream.Stream;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.config.LoftqConfig;

class LoftqTest {
    static Stream<InitCase> cases() {
        return InitCase.of("loftq");
    }

    @ParameterizedTest
    @MethodSource("cases")
    void unscaledStartsWherePeftStarts(InitCase golden) {
        golden.check(Loftq.start(golden.tensor("weight"), golden.rank(), golden.scale(), settings(golden), true), 2e-5);
    }

    /** Only the product {@code s B A} is fitted, so the scale moves into the factors and the quantised weight stays. */
    @ParameterizedTest
    @MethodSource("cases")
    void fitsTheScaledProduct(InitCase golden) {
        Tensor weight = golden.tensor("weight");
        double s = golden.scale();
        Start start = Loftq.start(weight, golden.rank(), s, settings(golden), false);
        Start one = Loftq.start(weight, golden.rank(), 1, settings(golden), true);
        double tolerance = 2e-5 * InitCase.largest(weight);
        assertThat(InitCase.difference(start.residual(), one.residual())).isLessThan(tolerance);
        Tensor scaled = start.b().matmul(start.a()).mul(new Scalar(s));
        assertThat(InitCase.difference(scaled, one.b().matmul(one.a()))).isLessThan(tolerance);
        assertThat(InitCase.unlike(weight, start, s))
                .as("closer to the weight than PEFT's start")
                .isLessThanOrEqualTo(InitCase.unlike(weight, one, s) + 1e-6);
    }

    @ParameterizedTest
    @CsvSource({"2, 4", "4, 16"})
    void normalFloatBlocksHoldFewValues(int bits, int most) {
        torch.manual_seed(2);
        Tensor rounded = Quantizer.round(torch.randn(7, 19), bits).reshape(-1);
        for (long begin = 0; begin < rounded.numel(); begin += 64) {
            Tensor block = rounded.narrow(0, begin, Math.min(64, rounded.numel() - begin));
            Set<Float> values = new HashSet<>();
            for (long i = 0; i < block.numel(); i++) {
                values.add(block.select(0, i).item_float());
            }
            assertThat(values).hasSizeBetween(2, most).contains(0f);
        }
    }

    @ParameterizedTest
    @ValueSource(ints = {2, 4, 8})
    void zerosStayZero(int bits) {
        Tensor matrix = torch.zeros(3, 64);
        matrix.select(0, 1).fill_(new Scalar(0.5));
        Tensor rounded = Quantizer.round(matrix, bits);
        assertThat(InitCase.difference(rounded, matrix)).isLessThan(1e-7);
    }

    @Test
    void moreIterationsDoNotLoseMore() {
        torch.manual_seed(4);
        Tensor weight = torch.randn(32, 24);
        double once = lost(weight, 1);
        assertThat(lost(weight, 5)).isLessThan(once);
        assertThat(once)
                .isLessThan(weight.sub(Quantizer.round(weight, 4)).norm().item_double());
    }

    private static double lost(Tensor weight, int iterations) {
        Start start = Loftq.start(weight, 8, 0.5, new LoftqConfig(4, iterations), false);
        Tensor fitted = start.b().matmul(start.a()).mul(new Scalar(0.5));
        return weight.sub(start.residual()).sub(fitted).norm().item_double();
    }

    @Test
    void refusesAScaleOfZero() {
        LoftqConfig settings = new LoftqConfig(4, 1);
        assertThatThrownBy(() -> Loftq.start(torch.randn(4, 6), 2, 0, settings, false))
                .hasMessageContaining("the scale, which is 0.0");
    }

    private static LoftqConfig settings(InitCase golden) {
        return new LoftqConfig(
                golden.json().get("bits").asInt(),
                golden.json().get("iterations").asInt());
    }
}
