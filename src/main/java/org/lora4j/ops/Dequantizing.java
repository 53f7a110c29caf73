package org.lora4j.ops;

import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;

/** Rows of a quantized weight: by the operations in use for the types they know, else by LibTorch's. */
final class Dequantizing {
    private Dequantizing() {}

    static Tensor rows(QuantizedWeight weight, ScalarType wanted, long from, long to) {
        ScalarType type = wanted.intern();
        if (type != ScalarType.Float && type != ScalarType.BFloat16 && type != ScalarType.Half) {
            return inLibTorch(weight, type, from, to);
        }
        Tensor rows = FourBitWeight.empty(weight.packed(), type, to - from, weight.columns());
        Ops.current().dequantize(rows, weight, from);
        return rows;
    }

    static Tensor inLibTorch(QuantizedWeight weight, ScalarType type, long from, long to) {
        return weight instanceof FourBitWeight four
                ? four.inLibTorch(type, from, to)
                : ((Int8Weight) weight).inLibTorch(type, from, to);
    }
}
