package org.lora4j.ops;

import java.util.Random;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.pytorch.LongOptional;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;

/** Seeded random matrices in every type and memory layout the operations accept. */
final class Samples {
    enum Layout {
        CONTIGUOUS,
        TRANSPOSED,
        ROWS_APART,
        COLUMNS_APART
    }

    static final ScalarType[] TYPES = {ScalarType.Float, ScalarType.BFloat16, ScalarType.Half};

    private final Random random;

    Samples(long seed) {
        this.random = new Random(seed);
    }

    Random random() {
        return random;
    }

    <T> T pick(T[] options) {
        return options[random.nextInt(options.length)];
    }

    int pick(int... options) {
        return options[random.nextInt(options.length)];
    }

    Tensor matrix(long rows, long columns) {
        return matrix(rows, columns, pick(TYPES), pick(Layout.values()));
    }

    /** Normal values in the given type; a layout other than contiguous is a view of a larger buffer of noise. */
    Tensor matrix(long rows, long columns, ScalarType type, Layout layout) {
        return switch (layout) {
            case CONTIGUOUS -> noise(rows, columns, type);
            case TRANSPOSED -> noise(columns, rows, type).t();
            case ROWS_APART ->
                slice(slice(noise(2 * rows + 1, columns + 3, type), 0, 1, 1 + 2 * rows, 2), 1, 2, columns + 2, 1);
            case COLUMNS_APART -> slice(noise(rows, 3 * columns + 1, type), 1, 1, 1 + 3 * columns, 3);
        };
    }

    private static Tensor slice(Tensor tensor, long dim, long start, long end, long step) {
        return tensor.slice(dim, new LongOptional(start), new LongOptional(end), step);
    }

    private Tensor noise(long rows, long columns, ScalarType type) {
        float[] values = new float[(int) (rows * columns)];
        for (int i = 0; i < values.length; i++) {
            values[i] = (float) random.nextGaussian();
        }
        Tensor tensor = torch.empty(rows, columns);
        if (values.length > 0) {
            new FloatPointer(tensor.data_ptr()).put(values);
        }
        return tensor.to(type);
    }

    LowRank lowRank(long rank, long in, long out) {
        return new LowRank(matrix(rank, in), matrix(out, rank), scale());
    }

    double scale() {
        return (random.nextBoolean() ? 1 : -1) * (0.25 + 2 * random.nextDouble());
    }
}
