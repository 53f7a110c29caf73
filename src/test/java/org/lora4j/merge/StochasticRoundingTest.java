package org.lora4j.merge;

import static org.assertj.core.api.Assertions.assertThat;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.lora4j.format.DType;

class StochasticRoundingTest {
    private static Tensor round(long seed, String name, DType type, float... values) {
        ByteBuffer in = ByteBuffer.allocateDirect(4 * values.length).order(ByteOrder.LITTLE_ENDIAN);
        for (float value : values) {
            in.putFloat(value);
        }
        ByteBuffer out = ByteBuffer.allocateDirect(2 * values.length);
        new StochasticRounding(seed, name).round(in.flip(), 0, type, out);
        return Blobs.matrix(out, type, 1, values.length).to(ScalarType.Double).clone();
    }

    @ParameterizedTest
    @EnumSource(
            value = DType.class,
            names = {"BF16", "F16"})
    void theMeanIsTheNumberAndEveryResultANeighbour(DType type) {
        double step = type == DType.BF16 ? 0x1p-7 : 0x1p-10;
        for (float value : new float[] {1.3f, -1.7001f, 0.0123f, -3e-5f, 1e-7f, 100.77f}) {
            float[] same = new float[40_000];
            java.util.Arrays.fill(same, value);
            Tensor rounded = round(1, "a", type, same);
            double width = Math.max(Math.abs(value) * step, 0x1p-24);
            double mean = rounded.mean().item_double();
            assertThat(Math.abs(mean - value)).as("%s", value).isLessThan(width * 0.02);
            double far = rounded.sub(new org.bytedeco.pytorch.Scalar((double) value))
                    .abs()
                    .max()
                    .item_double();
            assertThat(far).as("%s", value).isLessThanOrEqualTo(width);
        }
    }

    @ParameterizedTest
    @EnumSource(
            value = DType.class,
            names = {"BF16", "F16"})
    void numbersOfTheTypeStayAndSpecialOnesToo(DType type) {
        float[] exact = {0, -0f, 1, -1.5f, 65280, Float.POSITIVE_INFINITY, Float.NEGATIVE_INFINITY, 0x1p-14f, 0x1p-20f};
        Tensor rounded = round(3, "b", type, exact);
        for (int i = 0; i < exact.length; i++) {
            assertThat(rounded.select(1, i).item_double()).isEqualTo(exact[i]);
        }
        assertThat(round(3, "b", type, Float.NaN).isnan().all().item_bool()).isTrue();
    }

    @ParameterizedTest
    @CsvSource({"1, a, 1, a, true", "1, a, 2, a, false", "1, a, 1, b, false"})
    void seedAndNameDecide(long seed, String name, long otherSeed, String otherName, boolean same) {
        float[] values = new float[100];
        java.util.Arrays.fill(values, 1.0037f);
        Tensor one = round(seed, name, DType.BF16, values);
        assertThat(one.equal(round(otherSeed, otherName, DType.BF16, values))).isEqualTo(same);
    }
}
