package org.lora4j.layer;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.Map;
import java.util.stream.Stream;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.lora4j.config.CordaConfig;
import org.lora4j.config.LoraConfig;
import org.lora4j.ops.Tensors;
import tools.jackson.databind.json.JsonMapper;

class CordaTest {
    private static final CordaConfig DEFAULTS =
            CordaConfig.of(LoraConfig.builder().build());

    static Stream<InitCase> cases() {
        return InitCase.of("corda");
    }

    @ParameterizedTest
    @MethodSource("cases")
    void sumsUpThePeftsCovariance(InitCase golden) {
        try (InputCovariance covariance = covariance(golden)) {
            assertThat(covariance.samples())
                    .isEqualTo(golden.json().get("inputs").asLong());
            Tensor expected = golden.tensor("covariance");
            assertThat(Tensors.type(covariance.mean())).isEqualTo(Tensors.type(expected));
            assertThat(InitCase.difference(covariance.mean(), expected))
                    .isLessThanOrEqualTo(1e-5 * InitCase.largest(expected));
        }
    }

    @ParameterizedTest
    @MethodSource("cases")
    void startsWherePeftStarts(InitCase golden) {
        try (InputCovariance covariance = covariance(golden)) {
            Tensor weight = golden.tensor("weight");
            Start start = Corda.start(weight, golden.rank(), golden.scale(), covariance.mean(), settings(golden));
            golden.check(start, 1e-4);
            assertThat(InitCase.unlike(weight, start, golden.scale())).isLessThan(golden.bf16() ? 0.004 : 1e-6);
        }
    }

    private static InputCovariance covariance(InitCase golden) {
        InputCovariance covariance = new InputCovariance(settings(golden));
        for (int i = 0; i < golden.json().get("inputs").asInt(); i++) {
            covariance.add(golden.tensor("input" + i));
        }
        return covariance;
    }

    @SuppressWarnings("unchecked")
    private static CordaConfig settings(InitCase golden) {
        Map<String, Object> given = new JsonMapper().convertValue(golden.json().get("config"), Map.class);
        return CordaConfig.of(
                LoraConfig.builder().otherField("corda_config", given).build());
    }

    /** With inputs of one kind everywhere, the components are those of the weight. */
    @ParameterizedTest
    @EnumSource(CordaConfig.Method.class)
    void withAnEvenCovarianceTakesTheWeightsComponents(CordaConfig.Method method) {
        torch.manual_seed(9);
        TensorOptions type = new TensorOptions(torch.ScalarType.Double);
        Tensor weight = torch.randn(new long[] {9, 5}, type);
        CordaConfig settings = new CordaConfig(method, false, null, null);
        Start start = Corda.start(weight, 2, 0.5, torch.eye(5, type), settings);
        Svd whole = Svd.of(weight);
        Svd left = Svd.of(start.residual());
        Tensor rest = whole.s().narrow(0, method == CordaConfig.Method.IPM ? 2 : 0, 3);
        assertThat(InitCase.difference(left.s().narrow(0, 0, 3), rest)).isLessThan(1e-10);
    }

    @Test
    void aBatchCountsAsItsSequences() {
        torch.manual_seed(10);
        Tensor batch = torch.randn(3, 4, 5);
        try (InputCovariance together = new InputCovariance(DEFAULTS);
                InputCovariance apart = new InputCovariance(DEFAULTS)) {
            together.add(batch.view(1, 3, 4, 5));
            together.add(torch.randn(0, 4, 5));
            for (int i = 0; i < 3; i++) {
                apart.add(batch.select(0, i));
            }
            assertThat(together.samples()).isEqualTo(3);
            assertThat(InitCase.difference(together.mean(), apart.mean())).isLessThan(1e-6);
        }
    }

    @Test
    void oneTokenIsASample() {
        Tensor row = torch.tensor(2f, -4f, 1f);
        try (InputCovariance covariance = new InputCovariance(DEFAULTS)) {
            covariance.add(row);
            covariance.add(row.view(1, 3));
            Tensor x = row.div(new Scalar(2)).view(1, 3);
            assertThat(InitCase.difference(covariance.mean(), x.t().matmul(x))).isLessThan(1e-6);
        }
    }

    @Test
    void samplesWithoutAPositiveElementCount() {
        try (InputCovariance covariance = new InputCovariance(DEFAULTS)) {
            covariance.add(torch.zeros(2, 2));
            covariance.add(torch.tensor(0f, -3f).view(1, 2));
            assertThat(InitCase.difference(covariance.mean(), torch.diag(torch.tensor(0f, 0.5f))))
                    .isLessThan(1e-6);
        }
    }

    @Test
    void dampsACovarianceThatCannotBeInverted() {
        torch.manual_seed(11);
        Tensor few = torch.randn(1, 200).mul(new Scalar(1e3));
        Tensor weight = torch.randn(30, 200);
        Start start = Corda.start(weight, 4, 2, few.t().matmul(few), DEFAULTS);
        assertThat(InitCase.unlike(weight, start, 2)).isLessThan(1e-3);
    }

    @Test
    void refusesWhatItCannotUse() {
        Tensor weight = torch.randn(4, 6);
        assertThatThrownBy(() -> Corda.start(weight, 2, 1, torch.eye(4), DEFAULTS))
                .hasMessageContaining("Float[4, 4]")
                .hasMessageContaining("(6, 6)");
        assertThatThrownBy(() -> Corda.start(weight, 2, 1, torch.zeros(6, 6), DEFAULTS))
                .hasMessageContaining("diagonal is 0.0");
        assertThatThrownBy(() -> Corda.start(weight, 2, -1, torch.eye(6), DEFAULTS))
                .hasMessageContaining("the scale, which is -1.0");
        try (InputCovariance covariance = new InputCovariance(DEFAULTS)) {
            assertThatThrownBy(covariance::mean).hasMessageContaining("no input");
            covariance.add(torch.ones(2, 3));
            assertThatThrownBy(() -> covariance.add(torch.ones(2, 4))).hasMessageContaining("Float[2, 4]");
            assertThatThrownBy(() -> covariance.add(torch.tensor(1f, Float.NaN, 1f)))
                    .hasMessageContaining("NaN");
        }
    }
}
