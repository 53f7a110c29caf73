package org.lora4j.ops;

import java.util.Arrays;
import java.util.Comparator;
import java.util.stream.IntStream;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;

/**
 * The two sets of 16 values bitsandbytes quantizes weights to. A weight is a value of the set times the largest
 * magnitude in its block.
 */
public enum FourBit {
    /**
     * 4-bit NormalFloat of QLoRA (arXiv:2305.14314, appendix E): quantiles of the normal distribution, with an exact zero.
     */
    NF4(
            -1.0f,
            -0.6961928009986877f,
            -0.5250730514526367f,
            -0.39491748809814453f,
            -0.28444138169288635f,
            -0.18477343022823334f,
            -0.09105003625154495f,
            0.0f,
            0.07958029955625534f,
            0.16093020141124725f,
            0.24611230194568634f,
            0.33791524171829224f,
            0.44070982933044434f,
            0.5626170039176941f,
            0.7229568362236023f,
            1.0f),
    /** A sign, two bits of exponent and one of mantissa, by the bits' pattern; a largest value of 12 is scaled to 1. */
    FP4(
            0.0f,
            0.0625f / 12,
            8.0f / 12,
            1.0f,
            4.0f / 12,
            6.0f / 12,
            2.0f / 12,
            3.0f / 12,
            -0.0f,
            -0.0625f / 12,
            -8.0f / 12,
            -1.0f,
            -4.0f / 12,
            -6.0f / 12,
            -2.0f / 12,
            -3.0f / 12);

    private final float[] values;
    /** The codes from the least value to the greatest; of the two zeros of FP4 the first is the positive one. */
    private final int[] order;

    FourBit(float... values) {
        this.values = values;
        // Not by Float.compare, which sets -0 before 0.
        this.order = IntStream.range(0, values.length)
                .boxed()
                .sorted(Comparator.comparingDouble(code -> values[code] + 0.0))
                .mapToInt(Integer::intValue)
                .toArray();
    }

    /** The name bitsandbytes knows it by. */
    public String id() {
        return this == NF4 ? "nf4" : "fp4";
    }

    /**
     * The set bitsandbytes knows by a name.
     *
     * @throws IllegalArgumentException if there is none
     */
    public static FourBit of(String id) {
        return Arrays.stream(values())
                .filter(each -> each.id().equals(id))
                .findFirst()
                .orElseThrow(() -> new IllegalArgumentException("quant_type is \"" + id + "\" but must be nf4 or fp4"));
    }

    /** The value of each code, 16 of them. */
    public float[] codeValues() {
        return values.clone();
    }

    /** The values as a float32 tensor (16), which bitsandbytes stores as {@code quant_map}. */
    Tensor map() {
        return torch.tensor(values);
    }

    /** The codes in the order of their values, int32 (16). */
    Tensor order() {
        return torch.tensor(order);
    }

    /** Between which values, in their order, a number is nearer to the next: float32 (15). */
    Tensor midpoints() {
        float[] midpoints = new float[values.length - 1];
        for (int i = 0; i < midpoints.length; i++) {
            midpoints[i] = (values[order[i]] + values[order[i + 1]]) / 2;
        }
        return torch.tensor(midpoints);
    }

    /** The two values that each byte stands for, the one of the high nibble first: float32 (256, 2). */
    Tensor pairs() {
        float[] pairs = new float[512];
        for (int b = 0; b < 256; b++) {
            pairs[2 * b] = values[b >> 4];
            pairs[2 * b + 1] = values[b & 15];
        }
        return torch.tensor(pairs).view(256, 2);
    }
}
