package org.lora4j.format;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.OptionalDouble;
import org.jspecify.annotations.Nullable;

/** Single numbers of a file's element types. */
final class Scalars {
    private static final int HALF_MIN_EXPONENT = -14;
    private static final int HALF_MAX_EXPONENT = 15;
    private static final int HALF_FRACTION_BITS = 10;

    private Scalars() {}

    /** The number, exactly; nothing for element types that hold no such numbers, or whole ones beyond 2^53. */
    static OptionalDouble decode(DType dtype, ByteBuffer bytes) {
        ByteBuffer in = bytes.duplicate().order(ByteOrder.LITTLE_ENDIAN);
        return switch (dtype) {
            case F64 -> OptionalDouble.of(in.getDouble());
            case F32 -> OptionalDouble.of(in.getFloat());
            case BF16 -> OptionalDouble.of(Float.intBitsToFloat(in.getShort() << 16));
            case F16 -> OptionalDouble.of(half(in.getShort()));
            case I64 -> whole(in.getLong());
            case I32 -> OptionalDouble.of(in.getInt());
            case I16 -> OptionalDouble.of(in.getShort());
            case I8 -> OptionalDouble.of(in.get());
            case U8 -> OptionalDouble.of(in.get() & 0xff);
            default -> OptionalDouble.empty();
        };
    }

    private static OptionalDouble whole(long value) {
        return Math.abs(value) <= 1L << 53 && value != Long.MIN_VALUE
                ? OptionalDouble.of(value)
                : OptionalDouble.empty();
    }

    private static double half(short bits) {
        int exponent = bits >> HALF_FRACTION_BITS & 0x1f;
        int fraction = bits & 0x3ff;
        double sign = bits < 0 ? -1 : 1;
        if (exponent == 0x1f) {
            return fraction == 0 ? sign * Double.POSITIVE_INFINITY : Double.NaN;
        }
        return exponent == 0
                ? sign * Math.scalb((double) fraction, HALF_MIN_EXPONENT - HALF_FRACTION_BITS)
                : sign * Math.scalb((double) (fraction | 0x400), exponent - 15 - HALF_FRACTION_BITS);
    }

    /** The bytes of a number, or null if the type does not hold it exactly. */
    static byte @Nullable [] encode(double value, DType dtype) {
        ByteBuffer out = ByteBuffer.allocate(dtype.bits() / 8).order(ByteOrder.LITTLE_ENDIAN);
        switch (dtype) {
            case F64 -> out.putDouble(value);
            case F32 -> out.putFloat((float) value);
            case BF16 -> out.putShort((short) (Float.floatToRawIntBits((float) value) >>> 16));
            case F16 -> out.putShort(halfBits(value));
            default -> {
                return null;
            }
        }
        OptionalDouble back = decode(dtype, out.flip());
        return back.isPresent() && back.getAsDouble() == value ? out.array() : null;
    }

    /** The bits of a number that a half holds; others come out as some other number. */
    private static short halfBits(double value) {
        int exponent = Math.max(HALF_MIN_EXPONENT, Math.min(HALF_MAX_EXPONENT, Math.getExponent(value)));
        int scaled = (int) Math.scalb(Math.abs(value), HALF_FRACTION_BITS - exponent);
        int bits = scaled < 0x400 ? scaled : exponent + 15 << HALF_FRACTION_BITS | scaled & 0x3ff;
        return (short) (value < 0 ? bits | 0x8000 : bits);
    }
}
