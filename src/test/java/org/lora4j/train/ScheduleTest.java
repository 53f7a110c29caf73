package org.lora4j.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

class ScheduleTest {
    @ParameterizedTest
    @EnumSource
    void risesDuringTheWarmUpAndPeaksAfterIt(Schedule schedule) {
        assertThat(schedule.factor(0, 4, 20)).isZero();
        assertThat(schedule.factor(3, 4, 20)).isEqualTo(0.75);
        assertThat(schedule.factor(4, 4, 20)).isEqualTo(1);
        assertThat(schedule.factor(0, 0, 20)).isEqualTo(1);
    }

    @Test
    void fallsAsItsNameSays() {
        assertThat(Schedule.CONSTANT.factor(19, 4, 20)).isEqualTo(1);
        assertThat(Schedule.LINEAR.factor(8, 4, 20)).isEqualTo(0.75);
        assertThat(Schedule.COSINE.factor(12, 4, 20)).isEqualTo(0.5, within(1e-12));
        assertThat(Schedule.COSINE.factor(8, 4, 20)).isEqualTo((1 + Math.sqrt(0.5)) / 2, within(1e-12));
    }

    @Test
    void allowsAWarmUpAsLongAsTheRun() {
        assertThat(Schedule.LINEAR.factor(4, 5, 5)).isEqualTo(0.8);
    }
}
