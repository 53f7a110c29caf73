package org.lora4j.train;

import java.util.Map;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.ops.Tensors;

/** The two running means of AdamW for a flat run of parameters, in 32 bits or in 8. */
abstract class Moments implements AutoCloseable {
    /** A part of both moments in float32, to be changed in place. */
    record Part(Tensor mean, Tensor square) {}

    /** Work on the elements from one place on. */
    interface Work {
        void on(long from, long count, Part part);
    }

    /** Runs over all elements, some at a time, and keeps what the work changed. */
    abstract void update(Work work);

    /** The tensors to save, by name. */
    abstract Map<String, Tensor> state();

    @Override
    public void close() {
        state().values().forEach(Tensor::close);
    }

    static Moments of(long size, boolean eightBit, Tensor like) {
        return eightBit ? new EightBit(size, like) : new Full(size, like);
    }

    private static Tensor zeros(Tensor like, ScalarType type, long... shape) {
        return Tensors.keep(torch.zeros(shape).to(like.device(), type));
    }

    private static final class Full extends Moments {
        private final Tensor mean;
        private final Tensor square;

        Full(long size, Tensor like) {
            mean = zeros(like, ScalarType.Float, size);
            square = zeros(like, ScalarType.Float, size);
        }

        @Override
        void update(Work work) {
            work.on(0, mean.numel(), new Part(mean, square));
        }

        @Override
        Map<String, Tensor> state() {
            return Map.of("mean", mean, "square", square);
        }
    }

    /**
     * Blocks of 256 elements with a scale each, as in 8-bit Adam (arXiv:2110.02861), but with linear steps: the mean in 255
     * steps from -1 to 1 times the scale, the root of the square in 256 steps from 0 to 1 times the scale.
     */
    private static final class EightBit extends Moments {
        private static final long BLOCK = 256;
        private static final long BLOCKS_AT_ONCE = 4096;

        private final long size;
        private final Tensor mean;
        private final Tensor meanScale;
        private final Tensor root;
        private final Tensor rootScale;

        EightBit(long size, Tensor like) {
            this.size = size;
            long blocks = (size + BLOCK - 1) / BLOCK;
            mean = zeros(like, ScalarType.Char, blocks, BLOCK);
            root = zeros(like, ScalarType.Byte, blocks, BLOCK);
            meanScale = zeros(like, ScalarType.Float, blocks, 1);
            rootScale = zeros(like, ScalarType.Float, blocks, 1);
        }

        @Override
        void update(Work work) {
            for (long block = 0; block < mean.size(0); block += BLOCKS_AT_ONCE) {
                long blocks = Math.min(BLOCKS_AT_ONCE, mean.size(0) - block);
                Tensor m = mean.narrow(0, block, blocks)
                        .to(ScalarType.Float)
                        .mul_(meanScale.narrow(0, block, blocks).div(new Scalar(127.0)));
                Tensor r = root.narrow(0, block, blocks)
                        .to(ScalarType.Float)
                        .mul_(rootScale.narrow(0, block, blocks).div(new Scalar(255.0)));
                Tensor v = r.mul(r);
                long from = block * BLOCK;
                long count = Math.min(blocks * BLOCK, size - from);
                work.on(
                        from,
                        count,
                        new Part(m.view(-1).narrow(0, 0, count), v.view(-1).narrow(0, 0, count)));
                store(m, mean, meanScale, block, 127);
                store(v.sqrt(), root, rootScale, block, 255);
            }
        }

        private static void store(Tensor values, Tensor bytes, Tensor scales, long block, double steps) {
            long blocks = values.size(0);
            Tensor scale = values.abs().amax(new long[] {1}, true);
            Tensor divisor = scale.div(new Scalar(steps)).clamp_min(new Scalar(1e-38));
            bytes.narrow(0, block, blocks).copy_(values.div(divisor).round_());
            scales.narrow(0, block, blocks).copy_(scale);
        }

        @Override
        Map<String, Tensor> state() {
            return Map.of("mean8", mean, "mean_scale", meanScale, "root8", root, "root_scale", rootScale);
        }
    }
}
