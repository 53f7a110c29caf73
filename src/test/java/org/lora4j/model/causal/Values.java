package org.lora4j.model.causal;

import org.bytedeco.javacpp.DoublePointer;
import org.bytedeco.javacpp.LongPointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;

/** Values of tensors, for assertions. */
final class Values {
    private Values() {}

    static double[] doubles(Tensor tensor) {
        try (PointerScope scope = new PointerScope()) {
            Tensor plain = tensor.detach().to(ScalarType.Double).contiguous();
            double[] values = new double[(int) plain.numel()];
            new DoublePointer(plain.data_ptr_double()).get(values);
            return values;
        }
    }

    static long[] longs(Tensor tensor) {
        try (PointerScope scope = new PointerScope()) {
            Tensor plain = tensor.to(ScalarType.Long).contiguous();
            long[] values = new long[(int) plain.numel()];
            new LongPointer(plain.data_ptr_long()).get(values);
            return values;
        }
    }

    /** Largest absolute difference; infinite if a value is not a number. */
    static double difference(Tensor a, Tensor b) {
        double[] x = doubles(a);
        double[] y = doubles(b);
        if (x.length != y.length) {
            throw new AssertionError(x.length + " values against " + y.length);
        }
        double largest = 0;
        for (int i = 0; i < x.length; i++) {
            double d = Math.abs(x[i] - y[i]);
            largest = Double.isNaN(d) ? Double.POSITIVE_INFINITY : Math.max(largest, d);
        }
        return largest;
    }

    static double largest(Tensor a) {
        double largest = 0;
        for (double v : doubles(a)) {
            largest = Math.max(largest, Math.abs(v));
        }
        return largest;
    }
}
