package org.lora4j.ops;

import java.util.List;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Device;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.jspecify.annotations.Nullable;

/**
 * The scales of the blocks of a weight: the largest magnitude in each. Double quantization (QLoRA, section 3) keeps them in
 * 8 bits: their mean is taken off, the rest is quantized in blocks of 256 to the dynamic type.
 *
 * @param values float32 scales (blocks), or uint8 codes (blocks) if they are quantized
 * @param nested how they are quantized, or null
 */
public record BlockScales(Tensor values, @Nullable Nested nested) {
    /** Scales that share a scale of their own in bitsandbytes. */
    static final int NESTED_BLOCK = 256;

    /** Below it bitsandbytes takes no reciprocal. */
    private static final Scalar TINY = Tensors.keep(new Scalar(1e-38));

    /**
     * @param scales float32 (nested blocks)
     * @param map the values of the codes, float32 (256)
     * @param offset what was taken off
     * @param blockSize codes that share a scale
     */
    public record Nested(Tensor scales, Tensor map, double offset, int blockSize) {}

    public BlockScales {
        ScalarType type = nested == null ? ScalarType.Float : ScalarType.Byte;
        check("absmax", values, type, -1);
        if (nested != null) {
            check("nested_absmax", nested.scales, ScalarType.Float, blocks(values.numel(), nested.blockSize));
            check("nested_quant_map", nested.map, ScalarType.Float, 256);
            if (!Double.isFinite(nested.offset)) {
                throw new IllegalArgumentException("nested_offset is " + nested.offset + ": the weight is broken");
            }
        }
    }

    private static void check(String name, Tensor tensor, ScalarType type, long count) {
        if (Tensors.type(tensor) != type || tensor.dim() != 1 || count >= 0 && tensor.numel() != count) {
            throw new IllegalArgumentException(name + " must be " + type + "[" + (count < 0 ? "blocks" : count)
                    + "], but is " + Tensors.describe(tensor) + ": take all tensors of one weight");
        }
    }

    static long blocks(long elements, int blockSize) {
        return (elements + blockSize - 1) / blockSize;
    }

    /** Quantizes float32 scales (blocks). The offset is their mean. */
    static BlockScales quantize(Tensor scales) {
        try (PointerScope scope = new PointerScope()) {
            double offset = scales.numel() == 0 ? 0 : scales.mean().item_double();
            Tensor map = DynamicMap.values().to(scales.device(), ScalarType.Float);
            Tensor midpoints = map.narrow(0, 0, 255).add(map.narrow(0, 1, 255)).div(new Scalar(2.0));
            Tensor rows = rows(scales.sub(new Scalar(offset)), NESTED_BLOCK);
            Tensor largest = largest(rows);
            Tensor codes = torch.bucketize(rows.mul(inverse(largest)), midpoints, true, false);
            Tensor values = codes.to(ScalarType.Byte)
                    .view(-1)
                    .narrow(0, 0, scales.numel())
                    .clone();
            Nested nested = new Nested(Scopes.leave(scope, largest), Scopes.leave(scope, map), offset, NESTED_BLOCK);
            return new BlockScales(Scopes.leave(scope, values), nested);
        }
    }

    /** Cuts a float32 vector into blocks, filled up with zeros: (blocks, blockSize). */
    static Tensor rows(Tensor vector, int blockSize) {
        long missing = blocks(vector.numel(), blockSize) * blockSize - vector.numel();
        Tensor full = missing == 0 ? vector : torch.constant_pad_nd(vector, 0, missing);
        return full.view(-1, blockSize);
    }

    /** The largest magnitude in each row; NaN if one is in it. */
    static Tensor largest(Tensor rows) {
        return rows.size(0) == 0 ? rows.new_zeros(0) : rows.abs().amax(new long[] {1}, false);
    }

    /** One over each scale, as a column. */
    static Tensor inverse(Tensor largest) {
        return largest.clamp_min(TINY).reciprocal().unsqueeze(1);
    }

    /** The scales of some blocks: float32 (count). */
    Tensor dequantize(long first, long count) {
        if (nested == null) {
            return values.narrow(0, first, count);
        }
        // Whole nested blocks around those asked for.
        int size = nested.blockSize;
        long begin = first / size * size;
        long end = Math.min(values.numel(), (first + count + size - 1) / size * size);
        Tensor codes = values.narrow(0, begin, end - begin).to(ScalarType.Int);
        Tensor rows = rows(nested.map.index_select(0, codes), size);
        Tensor scales = nested.scales.narrow(0, begin / size, rows.size(0)).unsqueeze(1);
        // Two roundings, as in bitsandbytes.
        return rows.mul(scales).add(new Scalar(nested.offset)).view(-1).narrow(0, first - begin, count);
    }

    /** The tensors they consist of. */
    List<Tensor> tensors() {
        return nested == null ? List.of(values) : List.of(values, nested.scales, nested.map);
    }

    BlockScales to(Device device) {
        Tensor there = values.to(device, Tensors.type(values));
        if (nested == null) {
            return new BlockScales(there, null);
        }
        return new BlockScales(
                there,
                new Nested(
                        nested.scales.to(device, ScalarType.Float),
                        nested.map.to(device, ScalarType.Float),
                        nested.offset,
                        nested.blockSize));
    }
}
