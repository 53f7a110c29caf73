package org.lora4j.ops;

import java.util.Arrays;
import java.util.List;
import org.bytedeco.pytorch.Tensor;

/** The contract of {@link LoraOps#combine}, and the matrices it is computed on. */
final class CombineChecks {
    private CombineChecks() {}

    static void check(Tensor y, List<TaskTensor> tensors) {
        Checks.type("y", y);
        if (y.dim() != 2 && !y.is_contiguous()) {
            throw new IllegalArgumentException(
                    "y is not contiguous: pass a contiguous tensor, or a matrix, which may have any strides");
        }
        Tensor out = matrix(y);
        Checks.writable("y", out);
        if (tensors.isEmpty()) {
            throw new IllegalArgumentException("tensors is empty: pass at least one");
        }
        for (int i = 0; i < tensors.size(); i++) {
            TaskTensor each = tensors.get(i);
            String name = "tensors[" + i + "]";
            Checks.type(name, each.tensor());
            Checks.device(name, each.tensor(), y, "y");
            if (!Arrays.equals(Tensors.shape(each.tensor()), Tensors.shape(y))) {
                throw new IllegalArgumentException(name + " is " + Tensors.describe(each.tensor()) + " but y is "
                        + Tensors.describe(y) + ": all must have the same shape");
            }
            if (!Float.isFinite((float) each.weight())) {
                throw new IllegalArgumentException(
                        name + ".weight is " + each.weight() + ": it must be finite in float32; correct the weights");
            }
            Tensor own = matrix(each.tensor());
            if (!same(out, own) && Checks.mayOverlap(out, own)) {
                throw new IllegalArgumentException(name + " shares memory with y: pass a copy of it");
            }
        }
    }

    /** The tensor as a matrix, which keeps the order of its elements: itself, or one row; a copy if it has to be. */
    static Tensor matrix(Tensor tensor) {
        return tensor.dim() == 2 ? tensor : tensor.reshape(1, tensor.numel());
    }

    private static boolean same(Tensor a, Tensor b) {
        return a.is_alias_of(b)
                && a.storage_offset() == b.storage_offset()
                && Tensors.type(a) == Tensors.type(b)
                && a.stride(0) == b.stride(0)
                && a.stride(1) == b.stride(1);
    }
}
