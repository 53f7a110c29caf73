package org.lora4j.layer;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.stream.Stream;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.ops.Tensors;

class DeltaToLoraTest {
    static Stream<InitCase> cases() {
        return InitCase.of("delta");
    }

    @ParameterizedTest
    @MethodSource("cases")
    void givesWhatPeftGives(InitCase golden) {
        Tensor delta = golden.tensor("delta");
        boolean fixed = golden.json().get("rank").isInt();
        Factors made = fixed
                ? DeltaToLora.ofRank(delta, golden.rank())
                : DeltaToLora.ofEnergy(delta, golden.json().get("rank").asDouble());
        assertThat(made.a().size(0))
                .isEqualTo(golden.json().get("effective_rank").asLong());
        assertThat(Tensors.type(made.a())).isEqualTo(Tensors.type(delta));
        boolean bf16 = Tensors.type(delta) == torch.ScalarType.BFloat16;
        double tolerance = (bf16 ? 0.01 : 1e-5) * InitCase.largest(delta);
        Tensor expected = wide(golden.tensor("b")).matmul(wide(golden.tensor("a")));
        assertThat(InitCase.difference(wide(made.b()).matmul(wide(made.a())), expected))
                .isLessThan(tolerance);
        assertThat(InitCase.difference(
                        wide(made.a()).abs(), wide(golden.tensor("a")).abs()))
                .as("rows up to their sign")
                .isLessThan(bf16 ? 0.01 : 1e-4);
    }

    private static Tensor wide(Tensor tensor) {
        return tensor.to(torch.ScalarType.Double);
    }

    @ParameterizedTest
    @CsvSource({"5, 3, 3", "3, 5, 3", "1, 1, 1", "4, 4, 2"})
    void signsAreTheSameForEqualChanges(long out, long in, int rank) {
        torch.manual_seed(13);
        Tensor delta = torch.randn(out, in);
        Factors once = DeltaToLora.ofRank(delta, rank);
        Factors turned = DeltaToLora.ofRank(delta.t().contiguous().t(), rank);
        assertThat(InitCase.difference(once.a(), turned.a())).isLessThan(1e-4);
        assertThat(InitCase.difference(once.b(), turned.b())).isLessThan(1e-4);
        Tensor largest = once.a().abs().amax(new long[] {1}, false);
        assertThat(InitCase.difference(once.a().amax(new long[] {1}, false), largest))
                .isZero();
        if (rank == Math.min(out, in)) {
            assertThat(InitCase.difference(once.b().matmul(once.a()), delta)).isLessThan(1e-5);
        }
    }

    @Test
    void takesAConvolutionAsAMatrix() {
        torch.manual_seed(14);
        Tensor delta = torch.randn(5, 2, 3, 3);
        Factors made = DeltaToLora.ofRank(delta, 5);
        assertThat(Tensors.shape(made.a())).containsExactly(5, 2, 3, 3);
        assertThat(Tensors.shape(made.b())).containsExactly(5, 5, 1, 1);
        Tensor product = made.b().flatten(1, -1).matmul(made.a().flatten(1, -1));
        assertThat(InitCase.difference(product.view(5, 2, 3, 3), delta)).isLessThan(1e-5);
    }

    @ParameterizedTest
    @CsvSource({"0.001, 1", "0.63, 1", "0.65, 2", "0.99, 2", "0.9999, 3", "1, 3"})
    void energyChoosesTheRank(double energy, long rank) {
        Tensor delta = torch.diag(torch.tensor(0.3f, 8f, 6f));
        assertThat(DeltaToLora.ofEnergy(delta, energy).a().size(0)).isEqualTo(rank);
    }

    @Test
    void noChangeHasRankOne() {
        Factors made = DeltaToLora.ofEnergy(torch.zeros(3, 4), 0.5);
        assertThat(Tensors.shape(made.a())).containsExactly(1, 4);
        assertThat(InitCase.largest(made.b())).isZero();
    }

    @ParameterizedTest
    @ValueSource(doubles = {0, -1, 1.5, Double.NaN})
    void refusesAnEnergyOutside(double energy) {
        assertThatThrownBy(() -> DeltaToLora.ofEnergy(torch.ones(2, 2), energy))
                .hasMessageContaining("energy is " + energy);
    }

    @Test
    void refusesARankAboveTheSmallerSide() {
        assertThatThrownBy(() -> DeltaToLora.ofRank(torch.ones(2, 3, 1, 1), 3))
                .hasMessageContaining("the rank is 3 and the change [2, 3]");
    }
}
