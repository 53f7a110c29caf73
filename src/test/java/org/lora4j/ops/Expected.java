package org.lora4j.ops;

import java.util.List;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;

/**
 * The exact result of an operation in double precision, and how far float32 arithmetic may be from it.
 *
 * <p>A sum of n products computed in float32, in any order and with or without fused steps, is within {@code n u /
 * (1 - n u)} of the sum of the magnitudes, with {@code u = 2^-24}. The rounding to the output's type adds half a unit
 * in its last place.
 */
final class Expected {
    private static final double UNIT = 0x1p-24;

    private final int columns;
    private final double[] values;
    private final double[] magnitudes;
    private final long[] terms;

    private Expected(Tensor start) {
        this.columns = (int) start.size(1);
        this.values = values(start);
        this.magnitudes = new double[values.length];
        this.terms = new long[values.length];
        for (int i = 0; i < values.length; i++) {
            magnitudes[i] = Math.abs(values[i]);
            terms[i] = 1;
        }
    }

    /** The result of {@link LoraOps#merge}; call before the operation. */
    static Expected merge(Tensor weight, List<LowRank> updates) {
        Expected expected = new Expected(weight);
        for (LowRank update : updates) {
            double[] a = values(update.a());
            double[] b = values(update.b());
            int rank = (int) update.rank();
            for (int o = 0; o < weight.size(0); o++) {
                for (int i = 0; i < expected.columns; i++) {
                    double sum = 0;
                    double magnitude = 0;
                    for (int k = 0; k < rank; k++) {
                        double product = b[o * rank + k] * a[k * expected.columns + i];
                        sum += product;
                        magnitude += Math.abs(product);
                    }
                    expected.add(o * expected.columns + i, update.scale(), sum, magnitude, rank + 3);
                }
            }
        }
        return expected;
    }

    /** The result of {@link LoraOps#lowRankUpdate}; call before the operation. */
    static Expected lowRankUpdate(Tensor y, Tensor x, int[] rows, List<LowRank> adapters) {
        Expected expected = new Expected(y);
        double[] input = values(x);
        for (int t = 0; t < rows.length; t++) {
            if (rows[t] < 0) {
                continue;
            }
            LowRank adapter = adapters.get(rows[t]);
            double[] a = values(adapter.a());
            double[] b = values(adapter.b());
            int rank = (int) adapter.rank();
            int in = (int) adapter.in();
            double[] v = new double[rank];
            double[] vMagnitude = new double[rank];
            for (int k = 0; k < rank; k++) {
                for (int i = 0; i < in; i++) {
                    double product = a[k * in + i] * input[t * in + i];
                    v[k] += product;
                    vMagnitude[k] += Math.abs(product);
                }
            }
            for (int o = 0; o < expected.columns; o++) {
                double sum = 0;
                double magnitude = 0;
                for (int k = 0; k < rank; k++) {
                    sum += b[o * rank + k] * v[k];
                    magnitude += Math.abs(b[o * rank + k]) * vMagnitude[k];
                }
                expected.add(t * expected.columns + o, adapter.scale(), sum, magnitude, in + rank + 3);
            }
        }
        return expected;
    }

    private void add(int at, double scale, double sum, double magnitude, long count) {
        values[at] += scale * sum;
        magnitudes[at] += Math.abs(scale) * magnitude;
        terms[at] += count;
    }

    /** @throws AssertionError naming the first element of actual that is further away than rounding can explain */
    void check(String what, Tensor actual) {
        double[] got = values(actual);
        if (got.length != values.length) {
            throw new AssertionError(what + ": " + got.length + " elements, expected " + values.length);
        }
        ScalarType type = Tensors.type(actual);
        for (int i = 0; i < got.length; i++) {
            double bound = bound(i, type);
            if (!(Math.abs(got[i] - values[i]) <= bound)) {
                throw new AssertionError(what + ": element (" + i / columns + ", " + i % columns + ") of "
                        + Tensors.describe(actual) + " is " + got[i] + ", expected " + values[i] + " +- " + bound);
            }
        }
    }

    private double bound(int i, ScalarType type) {
        double sums = terms[i] == 1 ? 0 : terms[i] * UNIT / (1 - terms[i] * UNIT) * magnitudes[i];
        double half = type == ScalarType.BFloat16 ? 0x1p-8 : type == ScalarType.Half ? 0x1p-11 : UNIT;
        double smallest = type == ScalarType.Half ? 0x1p-25 : 0x1p-126;
        return terms[i] == 1 ? 0 : sums + half * (Math.abs(values[i]) + sums) + smallest;
    }

    /** The elements in row order. */
    static double[] values(Tensor tensor) {
        float[] floats = floats(tensor);
        double[] values = new double[floats.length];
        for (int i = 0; i < floats.length; i++) {
            values[i] = floats[i];
        }
        return values;
    }

    /** The elements in row order; exact for every type the operations accept. */
    static float[] floats(Tensor tensor) {
        float[] values = new float[(int) tensor.numel()];
        if (values.length > 0) {
            Tensor copy = tensor.detach().to(ScalarType.Float).contiguous();
            new FloatPointer(copy.data_ptr()).get(values);
        }
        return values;
    }
}
