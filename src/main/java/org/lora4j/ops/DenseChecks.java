package org.lora4j.ops;

import java.util.Arrays;
import java.util.List;
import org.bytedeco.pytorch.Tensor;

/** The contracts of {@link LoraOps}' operations on factors, quantized weights and pages. */
final class DenseChecks {
    private DenseChecks() {}

    static void gram(Tensor x, Tensor y) {
        Checks.matrix("x", x);
        Checks.matrix("y", y);
        Checks.device("y", y, x, "x");
        if (x.size(1) != y.size(1)) {
            throw new IllegalArgumentException("y is " + Tensors.describe(y) + " but x is " + Tensors.describe(x)
                    + ": rows of both must have the same length");
        }
    }

    static void rowNorms(Tensor norms, Tensor weight, LowRank update) {
        Checks.type("norms", norms);
        if (norms.dim() != 1) {
            throw new IllegalArgumentException(
                    "norms must have one dimension but is " + Tensors.describe(norms) + ": pass a vector");
        }
        Tensor column = norms.unsqueeze(1);
        Checks.writable("norms", column);
        Checks.matrix("weight", weight);
        Checks.device("weight", weight, norms, "norms");
        if (norms.size(0) != weight.size(0)) {
            throw new IllegalArgumentException("norms is " + Tensors.describe(norms) + " but weight is "
                    + Tensors.describe(weight) + ": pass one element for each row");
        }
        apart("weight", weight, "norms", column);
        Checks.factors("update", update, column, "norms");
        if (update.out() != weight.size(0) || update.in() != weight.size(1)) {
            throw new IllegalArgumentException("update is (" + update.out() + ", " + update.in() + ") but weight is "
                    + Tensors.describe(weight) + ": pass the factors of this layer");
        }
    }

    static void dequantize(Tensor target, QuantizedWeight weight, long firstRow) {
        Checks.matrix("target", target);
        Checks.writable("target", target);
        Checks.device("target", target, weight.packed(), "the weight");
        if (target.size(1) != weight.columns()) {
            throw new IllegalArgumentException("target is " + Tensors.describe(target) + " but the weight has "
                    + weight.columns() + " columns: pass a matrix of as many");
        }
        if (firstRow < 0 || firstRow > weight.rows() - target.size(0)) {
            throw new IllegalArgumentException("firstRow is " + firstRow + " and target has " + target.size(0)
                    + " rows, but the weight has " + weight.rows() + ": ask for rows it has");
        }
    }

    static void pages(Tensor pool, int[] pages, List<Tensor> matrices, boolean intoPool) {
        Checks.matrix("pool", pool);
        if (!pool.is_contiguous() || pool.size(1) < 1) {
            throw new IllegalArgumentException("pool is " + Tensors.describe(pool)
                    + " but must be a contiguous matrix with a page in each row: pass the whole pool");
        }
        long elements = 0;
        for (int i = 0; i < matrices.size(); i++) {
            String name = "matrices[" + i + "]";
            Checks.matrix(name, matrices.get(i));
            Checks.device(name, matrices.get(i), pool, "pool");
            apart(name, matrices.get(i), "pool", pool);
            if (!intoPool) {
                Checks.writable(name, matrices.get(i));
                for (int j = 0; j < i; j++) {
                    apart("matrices[" + j + "]", matrices.get(j), name, matrices.get(i));
                }
            }
            elements += matrices.get(i).numel();
        }
        if (elements > pages.length * pool.size(1)) {
            throw new IllegalArgumentException("pages has " + pages.length + " pages of " + pool.size(1)
                    + " elements but the matrices have " + elements + ": pass more pages");
        }
        for (int i = 0; i < pages.length; i++) {
            if (pages[i] < 0 || pages[i] >= pool.size(0)) {
                throw new IllegalArgumentException(
                        "pages[" + i + "] is " + pages[i] + " but the pool has " + pool.size(0) + " pages");
            }
        }
        if (intoPool && Arrays.stream(pages).distinct().count() < pages.length) {
            throw new IllegalArgumentException("pages has a page twice: pass each once, for each holds other elements");
        }
    }

    private static void apart(String name, Tensor tensor, String targetName, Tensor target) {
        if (Checks.mayOverlap(target, tensor)) {
            throw new IllegalArgumentException(name + " shares memory with " + targetName + ": pass a copy of it");
        }
    }
}
