package org.lora4j.ops;

import java.util.List;
import org.bytedeco.pytorch.Tensor;

/**
 * A quantized weight as the fields of an {@code l4_quantized}.
 *
 * @param values the fields
 * @param memory tensors they point into, to be kept while the fields are in use
 */
record QuantizedFields(long[] values, List<Tensor> memory) {
    static QuantizedFields of(QuantizedWeight weight) {
        return weight instanceof FourBitWeight four ? fourBits(four) : eightBits((Int8Weight) weight);
    }

    private static QuantizedFields fourBits(FourBitWeight weight) {
        Tensor packed = weight.packed().contiguous();
        Tensor map = weight.values().map();
        BlockScales.Nested nested = weight.scales().nested();
        Tensor scales = weight.scales().values().contiguous();
        long[] fields = fields(packed, 4, weight);
        fields[4] = NativeOps.address(map);
        fields[5] = weight.blockSize();
        if (nested == null) {
            fields[6] = NativeOps.address(scales);
            return new QuantizedFields(fields, List.of(packed, map, scales));
        }
        Tensor nestedScales = nested.scales().contiguous();
        Tensor nestedMap = nested.map().contiguous();
        fields[6] = NativeOps.address(nestedScales);
        fields[7] = NativeOps.address(scales);
        fields[8] = NativeOps.address(nestedMap);
        fields[9] = nested.blockSize();
        fields[10] = Double.doubleToRawLongBits(nested.offset());
        return new QuantizedFields(fields, List.of(packed, map, scales, nestedScales, nestedMap));
    }

    private static QuantizedFields eightBits(Int8Weight weight) {
        Tensor packed = weight.packed().contiguous();
        Tensor scales = weight.scales().contiguous();
        long[] fields = fields(packed, 8, weight);
        fields[6] = NativeOps.address(scales);
        return new QuantizedFields(fields, List.of(packed, scales));
    }

    private static long[] fields(Tensor packed, int bits, QuantizedWeight weight) {
        long[] fields = new long[12];
        fields[0] = NativeOps.address(packed);
        fields[1] = bits;
        fields[2] = weight.rows();
        fields[3] = weight.columns();
        return fields;
    }
}
