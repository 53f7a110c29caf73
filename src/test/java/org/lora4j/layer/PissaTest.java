package org.lora4j.layer;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.stream.Stream;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.lora4j.config.InitLoraWeights;
import org.lora4j.ops.Tensors;

class PissaTest {
    private static final InitLoraWeights EXACT = InitLoraWeights.of("pissa");

    static Stream<InitCase> cases() {
        return InitCase.of("pissa");
    }

    @ParameterizedTest
    @MethodSource("cases")
    void startsWherePeftStarts(InitCase golden) {
        torch.manual_seed(golden.json().get("seed").asLong());
        InitLoraWeights init = InitLoraWeights.of(golden.json().get("init").asString());
        Start start = Pissa.start(golden.tensor("weight"), golden.rank(), golden.scale(), init);
        golden.check(start, 2e-5);
        assertThat(InitCase.unlike(golden.tensor("weight"), start, golden.scale()))
                .isLessThan(golden.bf16() ? 0.004 : 1e-6);
    }

    @ParameterizedTest
    @CsvSource({"1, 1, 1", "7, 1, 1", "1, 9, 1", "12, 5, 5", "5, 12, 3"})
    void takesTheLargestComponents(long out, long in, int rank) {
        torch.manual_seed(3);
        Tensor weight = torch.randn(new long[] {out, in}, new TensorOptions(torch.ScalarType.Double));
        Start start = Pissa.start(weight, rank, 0.5, EXACT);
        assertThat(Tensors.type(start.a())).isEqualTo(torch.ScalarType.Double);
        Svd whole = Svd.of(weight);
        Tensor left = Svd.of(start.residual()).s();
        long rest = Math.min(out, in) - rank;
        assertThat(InitCase.difference(
                        left.narrow(0, 0, rest), whole.part(rank, rest).s()))
                .isLessThan(1e-10);
        assertThat(InitCase.largest(left.narrow(0, rest, rank))).isLessThan(1e-10);
    }

    @Test
    void keepsWeightAndGraphAsTheyAre() {
        Tensor weight = torch.randn(4, 6);
        weight.set_requires_grad(true);
        Tensor before = weight.detach().clone();
        Start start = Pissa.start(weight, 2, 2, EXACT);
        assertThat(start.a().requires_grad()).isFalse();
        assertThat(start.residual().requires_grad()).isFalse();
        assertThat(InitCase.difference(weight.detach(), before)).isZero();
    }

    @Test
    void takesAWeightOfAnyStrides() {
        Tensor weight = torch.randn(5, 8);
        Start expected = Pissa.start(weight, 2, 2, EXACT);
        Start start = Pissa.start(weight.t().contiguous().t(), 2, 2, EXACT);
        assertThat(InitCase.difference(start.residual(), expected.residual())).isLessThan(1e-5);
    }

    @Test
    void refusesWhatItCannotStartFrom() {
        Tensor weight = torch.randn(4, 6);
        assertThatThrownBy(() -> Pissa.start(weight, 5, 1, EXACT))
                .hasMessageContaining("the rank is 5 and the weight [4, 6]")
                .hasMessageContaining("to 4 or less");
        assertThatThrownBy(() -> Pissa.start(weight, 2, 0, EXACT)).hasMessageContaining("the scale, which is 0.0");
        assertThatThrownBy(() -> Pissa.start(torch.randn(4), 1, 1, EXACT)).hasMessageContaining("Float[4]");
        assertThatThrownBy(() -> Pissa.start(weight.to(torch.ScalarType.Char), 1, 1, EXACT))
                .hasMessageContaining("Char[4, 6]");
        weight.select(0, 1).fill_(new org.bytedeco.pytorch.Scalar(Double.NaN));
        assertThatThrownBy(() -> Pissa.start(weight, 2, 1, EXACT)).hasMessageContaining("NaN");
    }
}
