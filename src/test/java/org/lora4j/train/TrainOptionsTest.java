package org.lora4j.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import java.util.function.UnaryOperator;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

class TrainOptionsTest {
    static Stream<Arguments> wrong() {
        return Stream.of(
                wrong(b -> b.steps(0), "TrainOptions.steps, epochs = 0, 0: set exactly one"),
                wrong(b -> b.epochs(2), "TrainOptions.steps, epochs = 10, 2: set exactly one"),
                wrong(b -> b.batchSize(0), "TrainOptions.batchSize = 0: must be 1 or more"),
                wrong(b -> b.maxLength(1), "TrainOptions.maxLength = 1: must be 2"),
                wrong(b -> b.learningRate(0), "TrainOptions.learningRate = 0.0: must be a number above 0"),
                wrong(b -> b.learningRate(Double.NaN), "TrainOptions.learningRate = NaN"),
                wrong(b -> b.warmupSteps(-1), "TrainOptions.warmupSteps = -1: must be 0 or more"),
                wrong(b -> b.warmupSteps(11), "TrainOptions.warmupSteps = 11: must not exceed steps, which is 10"),
                wrong(b -> b.weightDecay(-0.1), "TrainOptions.weightDecay = -0.1"),
                wrong(b -> b.maxGradNorm(0), "TrainOptions.maxGradNorm = 0.0: must be above 0"),
                wrong(b -> b.maxGradNorm(Double.NaN), "TrainOptions.maxGradNorm = NaN"),
                wrong(b -> b.evalEvery(-1), "TrainOptions.evalEvery = -1"));
    }

    @ParameterizedTest
    @MethodSource("wrong")
    void refusesWrongValues(UnaryOperator<TrainOptions.Builder> change, String message) {
        var builder = change.apply(TrainOptions.builder().steps(10));
        assertThatIllegalArgumentException().isThrownBy(builder::build).withMessageStartingWith(message);
    }

    @Test
    void countsSteps() {
        assertThat(TrainOptions.builder().steps(7).build().steps(1000)).isEqualTo(7);
        var epochs = TrainOptions.builder().epochs(3).batchSize(4).build();
        assertThat(epochs.steps(9))
                .as("three rounds of three batches, the last of one")
                .isEqualTo(9);
        assertThat(epochs.steps(8)).isEqualTo(6);
    }

    private static Arguments wrong(UnaryOperator<TrainOptions.Builder> change, String message) {
        return Arguments.of(change, message);
    }
}
