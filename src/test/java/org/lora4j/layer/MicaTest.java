package org.lora4j.layer;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.stream.Stream;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

class MicaTest {
    static Stream<InitCase> cases() {
        return InitCase.of("mica");
    }

    @ParameterizedTest
    @MethodSource("cases")
    void startsWherePeftStarts(InitCase golden) {
        Start start = Mica.start(golden.tensor("weight"), golden.rank());
        golden.check(start, 1e-4);
        assertThat(InitCase.largest(start.a())).isZero();
    }

    @Test
    void takesTheSmallestComponents() {
        Tensor weight = torch.diag(torch.tensor(3f, 0.5f, 2f, 0.1f));
        Start start = Mica.start(weight, 2);
        assertThat(InitCase.largest(start.b().t().matmul(weight))).isEqualTo(0.5);
    }

    @Test
    void refusesARankAboveTheSmallerSide() {
        assertThatThrownBy(() -> Mica.start(torch.randn(4, 6), 5)).hasMessageContaining("the rank is 5");
    }
}
