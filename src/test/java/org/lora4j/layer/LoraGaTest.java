package org.lora4j.layer;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import java.util.Map;
import java.util.stream.Stream;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.LoraGaConfig;
import org.lora4j.config.LoraGaConfig.Direction;
import org.lora4j.config.LoraGaConfig.Scale;
import org.lora4j.ops.Tensors;
import tools.jackson.databind.json.JsonMapper;

class LoraGaTest {
    static Stream<InitCase> cases() {
        return InitCase.of("lora_ga");
    }

    @ParameterizedTest
    @MethodSource("cases")
    void startsWherePeftStarts(InitCase golden) {
        torch.manual_seed(golden.json().get("seed").asLong());
        Tensor weight = golden.tensor("weight");
        Start start = LoraGa.start(weight, golden.rank(), golden.scale(), golden.tensor("gradient"), settings(golden));
        check(golden, start);
        double size = InitCase.largest(start.b().matmul(start.a())) * golden.scale();
        assertThat(InitCase.unlike(weight, start, golden.scale()) * InitCase.largest(weight))
                .isLessThan((golden.bf16() ? 0.004 : 1e-6) * (size + InitCase.largest(weight)));
    }

    /** A and B take different singular vectors, whose signs are free, so that B A is PEFT's up to them alone. */
    private static void check(InitCase golden, Start start) {
        Tensor a = golden.tensor("a");
        Tensor b = golden.tensor("b");
        double tolerance = golden.bf16() ? 0.02 : 1e-4;
        Tensor signsA = start.a().mul(a).sum(1).sign().unsqueeze(1);
        Tensor signsB = start.b().mul(b).sum(0).sign().unsqueeze(0);
        assertThat(InitCase.difference(start.a().mul(signsA), a)).isLessThan(tolerance * InitCase.largest(a));
        assertThat(InitCase.difference(start.b().mul(signsB), b)).isLessThan(tolerance * InitCase.largest(b));
        assertThat(Tensors.type(start.residual())).isEqualTo(Tensors.type(golden.tensor("weight")));
    }

    @SuppressWarnings("unchecked")
    private static LoraGaConfig settings(InitCase golden) {
        Map<String, Object> given = new JsonMapper().convertValue(golden.json().get("config"), Map.class);
        return LoraGaConfig.of(
                LoraConfig.builder().otherField("lora_ga_config", given).build());
    }

    @ParameterizedTest
    @EnumSource(Direction.class)
    void takesSingularVectorsOfTheGradient(Direction direction) {
        torch.manual_seed(12);
        Tensor gradient = torch.zeros(6, 7);
        for (int i = 0; i < 6; i++) {
            gradient.select(0, i).select(0, i).fill_(new Scalar(6.0 - i));
        }
        Start start = LoraGa.start(torch.randn(6, 7), 2, 0.5, gradient, new LoraGaConfig(direction, Scale.UNIT, 16));
        Tensor rows = start.a().abs().sum(0);
        Tensor columns = start.b().abs().sum(1);
        switch (direction) {
            case ALTERNATING -> {
                check(rows, 0, 1, 0, 1, 0, 0, 0);
                check(columns, 6, 0, 4, 0, 0, 0);
            }
            case A_SECOND_HALF -> {
                check(rows, 0, 0, 1, 1, 0, 0, 0);
                check(columns, 6, 5, 0, 0, 0, 0);
            }
            case B_SECOND_HALF -> {
                check(rows, 1, 1, 0, 0, 0, 0, 0);
                check(columns, 0, 0, 4, 3, 0, 0);
            }
            case RANDOM -> {
                Tensor square = start.b().matmul(start.a()).narrow(1, 0, 6);
                assertThat(InitCase.difference(square, torch.diag(square.diagonal())))
                        .as("the same vectors for both")
                        .isLessThan(1e-5);
                assertThat(start.a().abs().sum().item_double()).isCloseTo(2, within(1e-5));
            }
        }
    }

    private static void check(Tensor actual, float... expected) {
        assertThat(InitCase.difference(actual, torch.tensor(expected))).isLessThan(1e-5);
    }

    @Test
    void takesTheWidthOfTheOutputForStable() {
        Tensor weight = torch.randn(16, 4);
        Tensor gradient = torch.randn(16, 4);
        torch.manual_seed(1);
        Start unit = LoraGa.start(weight, 1, 1, gradient, new LoraGaConfig(Direction.B_SECOND_HALF, Scale.UNIT, 4));
        torch.manual_seed(1);
        Start stable = LoraGa.start(weight, 1, 1, gradient, new LoraGaConfig(Direction.B_SECOND_HALF, Scale.STABLE, 4));
        assertThat(InitCase.difference(stable.b(), unit.b().mul(new Scalar(2.0 / 2))))
                .isLessThan(1e-5);
        assertThat(InitCase.difference(stable.a(), unit.a())).isZero();
    }

    @Test
    void refusesWhatItCannotUse() {
        LoraGaConfig settings = LoraGaConfig.of(LoraConfig.builder().build());
        Tensor weight = torch.randn(4, 6);
        assertThatThrownBy(() -> LoraGa.start(weight, 3, 1, weight, settings))
                .hasMessageContaining("the rank is 3")
                .hasMessageContaining("to 2 or less");
        assertThatThrownBy(() -> LoraGa.start(weight, 2, 1, weight.t(), settings))
                .hasMessageContaining("the gradient is Float[6, 4]");
        Tensor broken = weight.div(new Scalar(0.0));
        assertThatThrownBy(() -> LoraGa.start(weight, 2, 1, broken, settings))
                .hasMessageContaining("the gradient has NaN or infinite");
        LoraGaConfig divided = new LoraGaConfig(Direction.RANDOM, Scale.GD_SCALE, 16);
        assertThatThrownBy(() -> LoraGa.start(weight, 2, 0, weight, divided))
                .hasMessageContaining("the scale, which is 0.0");
    }
}
