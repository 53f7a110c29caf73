package org.lora4j.merge;

import java.util.Locale;
import java.util.Map;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.format.DType;

/** Element types and sizes as the merge uses them. */
final class Numbers {
    private static final Map<DType, ScalarType> FLOATS =
            Map.of(DType.F32, ScalarType.Float, DType.BF16, ScalarType.BFloat16, DType.F16, ScalarType.Half);

    private Numbers() {}

    /** Whether adapters can be merged into tensors of this type. */
    static boolean isFloat(DType dtype) {
        return FLOATS.containsKey(dtype);
    }

    static ScalarType torch(DType dtype) {
        ScalarType type = FLOATS.get(dtype);
        if (type == null) {
            throw new IllegalArgumentException(dtype + " is none of F32, BF16 and F16");
        }
        return type;
    }

    /** Bytes of one element of a type of whole bytes. */
    static int bytes(DType dtype) {
        return dtype.bits() / 8;
    }

    /** The number of elements; sizes come from checked headers, so it does not overflow. */
    static long count(long[] shape) {
        long count = 1;
        for (long size : shape) {
            count *= size;
        }
        return count;
    }

    /** Bytes with a unit, for messages. */
    static String size(long bytes) {
        if (bytes < 10_000) {
            return bytes + " bytes";
        }
        String[] units = {"kB", "MB", "GB", "TB"};
        double value = bytes / 1e3;
        int unit = 0;
        while (value >= 1000 && unit < units.length - 1) {
            value /= 1000;
            unit++;
        }
        return String.format(Locale.ROOT, value < 10 ? "%.2f %s" : "%.1f %s", value, units[unit]);
    }
}
