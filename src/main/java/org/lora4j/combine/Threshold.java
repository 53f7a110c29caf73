package org.lora4j.combine;

import java.nio.FloatBuffer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;

/**
 * The k-th largest magnitude of a matrix, exactly, in two passes over its tiles: the magnitudes are counted by the upper
 * bits of their float32, then those of the one interval that matters by the lower bits.
 */
final class Threshold {
    private static final int LOW_BITS = 15;

    private Threshold() {}

    /**
     * The magnitude that is reached by k elements, or by more where several have it.
     *
     * @param k 0 gives infinity, which no element reaches; all or more give 0, which every element reaches
     */
    static float ofLargest(Tiles matrix, long k) {
        if (k <= 0) {
            return Float.POSITIVE_INFINITY;
        }
        if (k >= matrix.rows() * matrix.columns()) {
            return 0;
        }
        int[] high = new int[1 << (31 - LOW_BITS)];
        forEachBits(matrix, bits -> {
            for (int i = 0; i < bits.limit(); i++) {
                high[(Float.floatToRawIntBits(bits.get(i)) & Integer.MAX_VALUE) >>> LOW_BITS]++;
            }
        });
        long left = k;
        int interval = high.length - 1;
        while (Integer.toUnsignedLong(high[interval]) < left) {
            left -= Integer.toUnsignedLong(high[interval--]);
        }
        int[] low = new int[1 << LOW_BITS];
        int wanted = interval;
        forEachBits(matrix, bits -> {
            for (int i = 0; i < bits.limit(); i++) {
                int value = Float.floatToRawIntBits(bits.get(i)) & Integer.MAX_VALUE;
                if (value >>> LOW_BITS == wanted) {
                    low[value & (1 << LOW_BITS) - 1]++;
                }
            }
        });
        int place = low.length - 1;
        while (Integer.toUnsignedLong(low[place]) < left) {
            left -= Integer.toUnsignedLong(low[place--]);
        }
        return Float.intBitsToFloat(interval << LOW_BITS | place);
    }

    private interface Work {
        void on(FloatBuffer values);
    }

    private static void forEachBits(Tiles matrix, Work work) {
        Tiles.forEach(
                (from, tiles) -> {
                    Tensor tile = tiles[0].to(ScalarType.Float).cpu().contiguous();
                    work.on(new FloatPointer(tile.data_ptr())
                            .capacity(tile.numel())
                            .asBuffer());
                },
                matrix);
    }
}
