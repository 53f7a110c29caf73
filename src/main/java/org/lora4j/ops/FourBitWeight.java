package org.lora4j.ops;

import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.ScalarTypeOptional;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;

/**
 * A weight in 4 bits. The elements, row after row, are cut into blocks, across the ends of rows; the last one may be
 * short. Each element is the value of {@link FourBit} nearest to it in units of the largest magnitude in its block, of two
 * equally near ones the lesser. A byte holds two elements, the first in its high bits; an odd number of elements leaves the
 * code of zero in the last one's low bits.
 *
 * @param values the set of 16 values
 * @param packed uint8 (ceil(rows * columns / 2), 1)
 * @param scales of the blocks
 * @param blockSize elements in a block: a power of two from 32 to 4096
 * @param rows rows of the weight
 * @param columns columns of the weight
 * @param dtype the type the weight had
 */
public record FourBitWeight(
        FourBit values, Tensor packed, BlockScales scales, int blockSize, long rows, long columns, ScalarType dtype)
        implements QuantizedWeight {
    /** What bitsandbytes accepts. */
    private static final Set<Integer> BLOCK_SIZES = Set.of(32, 64, 128, 256, 512, 1024, 2048, 4096);

    /** Elements worked on at a time: a multiple of every block size, small beside a large weight. */
    private static final long TILE = 1L << 20;

    static {
        LibTorch.load();
    }

    public FourBitWeight {
        checkBlockSize(blockSize);
        long elements = Math.multiplyExact(rows, columns);
        if (Tensors.type(packed) != ScalarType.Byte
                || packed.dim() != 2
                || packed.size(0) != (elements + 1) / 2
                || packed.size(1) != 1) {
            throw new IllegalArgumentException("the packed weight of a layer with " + columns + " inputs and " + rows
                    + " outputs must be Byte[" + (elements + 1) / 2 + ", 1], but is " + Tensors.describe(packed)
                    + ": take all tensors of one weight");
        }
        long blocks = BlockScales.blocks(elements, blockSize);
        if (scales.values().numel() != blocks) {
            throw new IllegalArgumentException("absmax has " + scales.values().numel() + " scales, but a weight of "
                    + rows + " x " + columns + " has " + blocks + " blocks of " + blockSize
                    + ": take all tensors of one weight");
        }
    }

    private static void checkBlockSize(int blockSize) {
        if (!BLOCK_SIZES.contains(blockSize)) {
            throw new IllegalArgumentException(
                    "blockSize is " + blockSize + " but must be a power of two from 32 to 4096, as in bitsandbytes");
        }
    }

    /**
     * Quantizes a weight.
     *
     * @param weight Float, BFloat16 or Half (rows, columns), any strides
     * @param doubleQuant whether to quantize the scales too
     * @throws IllegalArgumentException if shape, type or block size are others
     * @throws ArithmeticException if the weight holds NaN or infinity
     */
    public static FourBitWeight quantize(Tensor weight, FourBit values, int blockSize, boolean doubleQuant) {
        QuantizedWeight.checkWeight(weight);
        checkBlockSize(blockSize);
        long elements = weight.numel();
        try (PointerScope scope = new PointerScope();
                NoGradGuard noGrad = new NoGradGuard()) {
            Tensor flat = weight.detach().contiguous().view(-1);
            Tensor packed = empty(weight, ScalarType.Byte, (elements + 1) / 2, 1);
            Tensor largest = empty(weight, ScalarType.Float, BlockScales.blocks(elements, blockSize));
            for (long begin = 0; begin < elements; begin += TILE) {
                quantizeTile(
                        flat.narrow(0, begin, Math.min(TILE, elements - begin)),
                        begin,
                        values,
                        blockSize,
                        packed,
                        largest);
            }
            if (!torch.isfinite(largest).all().item_bool()) {
                throw new ArithmeticException("the weight " + Tensors.describe(weight)
                        + " holds NaN or infinity, which 4 bits cannot: check where it comes from");
            }
            BlockScales scales = doubleQuant ? BlockScales.quantize(largest) : new BlockScales(largest, null);
            scales.tensors().forEach(each -> Scopes.leave(scope, each));
            return new FourBitWeight(
                    values,
                    Scopes.leave(scope, packed),
                    scales,
                    blockSize,
                    weight.size(0),
                    weight.size(1),
                    Tensors.type(weight));
        }
    }

    private static void quantizeTile(
            Tensor elements, long begin, FourBit values, int blockSize, Tensor packed, Tensor largest) {
        try (PointerScope scope = new PointerScope()) {
            Tensor blocks = BlockScales.rows(elements.to(ScalarType.Float), blockSize);
            Tensor scales = BlockScales.largest(blocks);
            largest.narrow(0, begin / blockSize, scales.numel()).copy_(scales);
            Tensor midpoints = values.midpoints().to(blocks.device(), ScalarType.Float);
            Tensor codes = torch.bucketize(blocks.mul(BlockScales.inverse(scales)), midpoints, true, false)
                    .view(-1);
            if (values == FourBit.FP4) {
                codes = values.order().to(blocks.device(), ScalarType.Int).index_select(0, codes);
            }
            Tensor pairs = codes.to(ScalarType.Byte).view(-1, 2);
            Tensor bytes = pairs.select(1, 0).mul(new Scalar(16)).add(pairs.select(1, 1));
            long count = (elements.numel() + 1) / 2;
            packed.view(-1).narrow(0, begin / 2, count).copy_(bytes.narrow(0, 0, count));
        }
    }

    static Tensor empty(Tensor like, ScalarType type, long... shape) {
        try (TensorOptions of = like.options();
                ScalarTypeOptional wanted = new ScalarTypeOptional(type);
                TensorOptions options = of.dtype(wanted)) {
            return torch.empty(shape, options, null);
        }
    }

    /** {@link #dequantize} by LibTorch's operations. */
    Tensor inLibTorch(ScalarType type, long from, long to) {
        return Scopes.within(() -> {
            try (NoGradGuard noGrad = new NoGradGuard()) {
                Tensor result = empty(packed, type, (to - from) * columns);
                long end = to * columns;
                for (long begin = from * columns; begin < end; ) {
                    // Tiles begin with a block, so that a block is in one tile only.
                    long next = Math.min(end, (begin / TILE + 1) * TILE);
                    dequantizeTile(begin, next, result.narrow(0, begin - from * columns, next - begin));
                    begin = next;
                }
                return result.view(to - from, columns);
            }
        });
    }

    private void dequantizeTile(long begin, long end, Tensor result) {
        try (PointerScope scope = new PointerScope()) {
            long firstBlock = begin / blockSize;
            long firstElement = firstBlock * blockSize;
            long lastElement = Math.min(rows * columns, BlockScales.blocks(end, blockSize) * blockSize);
            Tensor bytes = packed.view(-1)
                    .narrow(0, firstElement / 2, (lastElement + 1) / 2 - firstElement / 2)
                    .to(ScalarType.Int);
            Tensor units = values.pairs()
                    .to(packed.device(), ScalarType.Float)
                    .index_select(0, bytes)
                    .view(-1)
                    .narrow(0, 0, lastElement - firstElement);
            Tensor blocks = BlockScales.rows(units, blockSize);
            Tensor products =
                    blocks.mul(scales.dequantize(firstBlock, blocks.size(0)).unsqueeze(1));
            result.copy_(products.view(-1).narrow(0, begin - firstElement, end - begin));
        }
    }

    @Override
    public FourBitWeight requantize(Tensor weight) {
        if (weight.dim() != 2 || weight.size(0) != rows || weight.size(1) != columns) {
            throw new IllegalArgumentException("the weight is " + Tensors.describe(weight) + " but must be (" + rows
                    + ", " + columns + "): pass one of the same layer");
        }
        FourBitWeight made = quantize(weight, values, blockSize, scales.nested() != null);
        return new FourBitWeight(values, made.packed, made.scales, blockSize, rows, columns, dtype);
    }

    @Override
    public FourBitWeight on(Tensor packed) {
        return new FourBitWeight(values, packed, scales.to(packed.device()), blockSize, rows, columns, dtype);
    }

    @Override
    public List<Tensor> tensors() {
        List<Tensor> tensors = new ArrayList<>(List.of(packed));
        tensors.addAll(scales.tensors());
        return tensors;
    }

    @Override
    public String description() {
        return values.id() + ", blocks of " + blockSize + (scales.nested() == null ? "" : ", double quantization");
    }
}
