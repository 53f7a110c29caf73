package org.lora4j.combine;

import java.util.Arrays;
import org.bytedeco.javacpp.DoublePointer;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;

/** The rules of combination types written out with loops over arrays, as references. */
final class Dense {
    private Dense() {}

    static double[] array(Tensor tensor) {
        Tensor wide = tensor.detach().to(ScalarType.Double).contiguous();
        double[] values = new double[(int) wide.numel()];
        new DoublePointer(wide.data_ptr()).get(values);
        return values;
    }

    /** s B A of a member, (out, in), in float64. */
    static Tensor update(LayerInput.Member member) {
        Tensor b = member.matrixB().to(ScalarType.Double);
        Tensor a = member.matrixA().to(ScalarType.Double);
        return b.matmul(a).mul(new Scalar(member.scale()));
    }

    /** B A of a result, in float64. */
    static Tensor product(LayerResult result) {
        Tensor b = result.b().flatten(1, -1).to(ScalarType.Double);
        return b.matmul(result.a().flatten(1, -1).to(ScalarType.Double));
    }

    /** Keeps the k elements of largest magnitude, but not the first {@code skip} of them. */
    static double[] trimmed(double[] values, int k, int skip) {
        Integer[] order = new Integer[values.length];
        Arrays.setAll(order, i -> i);
        Arrays.sort(order, (x, y) -> Double.compare(Math.abs(values[y]), Math.abs(values[x])));
        double[] kept = new double[values.length];
        for (int i = skip; i < skip + k; i++) {
            kept[order[i]] = values[order[i]];
        }
        return kept;
    }

    /** The mean of the weighted values that have the elected sign. */
    static double[] elected(double[][] values, double[] weights, boolean frequency) {
        double[] result = new double[values[0].length];
        for (int e = 0; e < result.length; e++) {
            double votes = 0;
            for (int i = 0; i < values.length; i++) {
                double value = weights[i] * values[i][e];
                votes += frequency ? Math.signum(value) : value;
            }
            double sign = votes >= 0 ? 1 : -1;
            double sum = 0;
            int count = 0;
            for (int i = 0; i < values.length; i++) {
                double value = weights[i] * values[i][e];
                if (Math.signum(value) == sign) {
                    sum += value;
                    count++;
                }
            }
            result[e] = sum / Math.max(1, count);
        }
        return result;
    }

    static double[] sum(double[][] values, double[] weights) {
        double[] result = new double[values[0].length];
        for (int i = 0; i < values.length; i++) {
            for (int e = 0; e < result.length; e++) {
                result[e] += weights[i] * values[i][e];
            }
        }
        return result;
    }

    /** Variances select elements, energies weigh adapters, minority signs are erased (arXiv:2408.07990). */
    static double[] sce(double[][] values, double[] weights, int kept) {
        int size = values[0].length;
        double[][] weighted = new double[values.length][size];
        double[] variances = new double[size];
        for (int e = 0; e < size; e++) {
            double mean = 0;
            for (int i = 0; i < values.length; i++) {
                weighted[i][e] = weights[i] * values[i][e];
                mean += weighted[i][e] / values.length;
            }
            for (double[] each : weighted) {
                variances[e] += (each[e] - mean) * (each[e] - mean) / (values.length - 1);
            }
        }
        double[] chosen = trimmed(variances, kept, 0);
        double[] shares = new double[values.length];
        double total = 0;
        for (int i = 0; i < values.length; i++) {
            for (int e = 0; e < size; e++) {
                weighted[i][e] = chosen[e] == 0 ? 0 : weighted[i][e];
                shares[i] += weighted[i][e] * weighted[i][e];
            }
            total += shares[i];
        }
        double[] result = new double[size];
        for (int e = 0; e < size; e++) {
            double votes = 0;
            for (double[] each : weighted) {
                votes += each[e];
            }
            double sign = votes >= 0 ? 1 : -1;
            double weight = 0;
            for (int i = 0; i < values.length; i++) {
                if (Math.signum(weighted[i][e]) == sign) {
                    result[e] += shares[i] / total * weighted[i][e];
                    weight += shares[i] / total;
                }
            }
            result[e] = weight == 0 ? 0 : result[e] / weight;
        }
        return result;
    }

    static Tensor tensor(double[] values, long rows) {
        return Tensor.create(values).view(new long[] {rows, -1});
    }

    static double largestDifference(Tensor one, Tensor other) {
        return one.to(ScalarType.Double)
                .sub(other.to(ScalarType.Double))
                .abs()
                .max()
                .item_double();
    }

    static Tensor normal(long seed, long... shape) {
        torch.manual_seed(seed);
        return torch.randn(shape);
    }
}
