package org.lora4j.layer;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.stream.Stream;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

class OloraTest {
    static Stream<InitCase> cases() {
        return InitCase.of("olora");
    }

    @ParameterizedTest
    @MethodSource("cases")
    void startsWherePeftStarts(InitCase golden) {
        Tensor weight = golden.tensor("weight");
        boolean transposed = golden.json().get("transposed").asBoolean();
        Start start = transposed
                ? Olora.notTransposed(weight, golden.rank(), golden.scale())
                : Olora.start(weight, golden.rank(), golden.scale());
        golden.check(start, 2e-5);
        if (transposed) {
            assertThat(InitCase.unlike(weight, start, golden.scale()))
                    .as("PEFT's way changes what the layer computes")
                    .isGreaterThan(0.1);
        }
    }

    @ParameterizedTest
    @MethodSource("cases")
    void keepsTheWeightWhole(InitCase golden) {
        Tensor weight = golden.tensor("weight");
        Start start = Olora.start(weight, golden.rank(), golden.scale());
        assertThat(InitCase.unlike(weight, start, golden.scale())).isLessThan(golden.bf16() ? 0.004 : 1e-6);
        assertThat(InitCase.difference(start.b().t().matmul(start.b()), torch.eye(golden.rank())))
                .as("B has orthonormal columns")
                .isLessThan(1e-5);
    }

    @Test
    void refusesPeftsWayForAWeightThatIsNotSquare() {
        assertThatThrownBy(() -> Olora.notTransposed(torch.randn(4, 6), 2, 1))
                .hasMessageContaining("[4, 6]")
                .hasMessageContaining("OLORA_NOT_TRANSPOSED");
    }
}
