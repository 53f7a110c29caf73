package org.lora4j.merge;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import org.lora4j.format.DType;

/**
 * Rounds float32 to a narrower type up or down with a chance that makes the result right on average, so that updates
 * smaller than half a step are not lost. The choice for an element depends on a seed, the tensor's name and the element's
 * place alone.
 */
final class StochasticRounding {
    private static final double SMALLEST_HALF = 0x1p-24;
    private static final double LARGEST_HALF = 65504;

    private final long key;

    StochasticRounding(long seed, String tensor) {
        long mixed = mix(seed);
        for (byte b : tensor.getBytes(StandardCharsets.UTF_8)) {
            mixed = mix(mixed ^ b);
        }
        this.key = mixed;
    }

    /**
     * Rounds numbers.
     *
     * @param values float32, little endian
     * @param first the place of the first number in the tensor
     * @param out gets as many numbers of the type
     */
    void round(ByteBuffer values, long first, DType dtype, ByteBuffer out) {
        values.order(ByteOrder.LITTLE_ENDIAN);
        out.order(ByteOrder.LITTLE_ENDIAN);
        int count = values.remaining() / Float.BYTES;
        int from = values.position();
        int to = out.position();
        for (int i = 0; i < count; i++) {
            // 24 random bits: as many as a float32 has.
            int random = (int) (mix(key + first + i) >>> 40);
            float value = values.getFloat(from + 4 * i);
            short bits = dtype == DType.BF16 ? bfloat16(value, random) : half(value, random);
            out.putShort(to + 2 * i, bits);
        }
    }

    /** The high half of the bits, one more if the random bits reach over; NaN and numbers near infinity go to nearest. */
    private static short bfloat16(float value, int random) {
        int bits = Float.floatToRawIntBits(value);
        if (Float.isNaN(value)) {
            return (short) 0x7fc0;
        }
        boolean large = (bits & 0x7fff_ffff) >= 0x7f7f_0000;
        int added = large ? 0x7fff + (bits >>> 16 & 1) : random & 0xffff;
        return (short) (bits + added >>> 16);
    }

    private static short half(float value, int random) {
        if (Float.isNaN(value)) {
            return 0x7e00;
        }
        int sign = Float.floatToRawIntBits(value) >>> 16 & 0x8000;
        double size = Math.abs((double) value);
        if (size >= LARGEST_HALF) {
            return (short) (sign | (size < 65520 ? 0x7bff : 0x7c00));
        }
        // The step between neighbours; below the normal numbers it does not shrink.
        double step = Math.max(SMALLEST_HALF, Math.scalb(1.0, Math.getExponent(size) - 10));
        double steps = size / step;
        double down = Math.floor(steps);
        double rounded = (down + (random < (steps - down) * 0x1p24 ? 1 : 0)) * step;
        return (short) (sign | halfBits(rounded));
    }

    /** The bits of a number, not negative, that a half holds exactly. */
    private static int halfBits(double value) {
        if (value < 0x1p-14) {
            return (int) (value / SMALLEST_HALF);
        }
        int exponent = Math.getExponent(value);
        int fraction = (int) ((Math.scalb(value, -exponent) - 1) * 1024);
        return exponent + 15 << 10 | fraction;
    }

    /** The finalizer of SplitMix64 (Steele, Lea, Flood 2014). */
    private static long mix(long value) {
        long z = value + 0x9e37_79b9_7f4a_7c15L;
        z = (z ^ z >>> 30) * 0xbf58_476d_1ce4_e5b9L;
        z = (z ^ z >>> 27) * 0x94d0_49bb_1331_11ebL;
        return z ^ z >>> 31;
    }
}
