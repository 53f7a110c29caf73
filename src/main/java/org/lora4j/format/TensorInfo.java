package org.lora4j.format;

import java.util.Arrays;
import org.jspecify.annotations.Nullable;

/**
 * One tensor of a file.
 *
 * @param name its name
 * @param dtype its element type
 * @param shape its sizes; none for a scalar
 * @param begin first byte, counted from the start of the file's data
 * @param end first byte after it
 */
public record TensorInfo(String name, DType dtype, long[] shape, long begin, long end) {
    public TensorInfo {
        shape = shape.clone();
    }

    @Override
    public long[] shape() {
        return shape.clone();
    }

    /** Number of bytes. */
    public long bytes() {
        return end - begin;
    }

    @Override
    public boolean equals(@Nullable Object other) {
        return other instanceof TensorInfo info
                && name.equals(info.name)
                && dtype == info.dtype
                && Arrays.equals(shape, info.shape)
                && begin == info.begin
                && end == info.end;
    }

    @Override
    public int hashCode() {
        return name.hashCode() * 31 + Long.hashCode(begin);
    }

    /** Name, type and shape, such as {@code embed.weight: BF16[512, 64]}. */
    @Override
    public String toString() {
        return name + ": " + dtype + Arrays.toString(shape);
    }
}
