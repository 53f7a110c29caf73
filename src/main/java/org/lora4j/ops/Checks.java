package org.lora4j.ops;

import java.util.List;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Device;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.Layout;
import org.bytedeco.pytorch.global.torch.ScalarType;

/** The contract of {@link LoraOps}, checked the same way whatever computes the result. */
final class Checks {
    private Checks() {}

    static void merge(Tensor weight, List<LowRank> updates) {
        storedMatrix("weight", weight);
        writable("weight", weight);
        for (int i = 0; i < updates.size(); i++) {
            LowRank update = updates.get(i);
            String name = "updates[" + i + "]";
            factors(name, update, weight, "weight");
            if (update.out() != weight.size(0) || update.in() != weight.size(1)) {
                throw new IllegalArgumentException(name + " is (" + update.out() + ", " + update.in()
                        + ") but weight is " + Tensors.describe(weight)
                        + ": pass the factors of this layer, or a transposed view of the weight");
            }
        }
    }

    static void merge(Tensor weight, Tensor from, List<LowRank> updates) {
        merge(weight, updates);
        storedMatrix("from", from);
        device("from", from, weight, "weight");
        if (from.size(0) != weight.size(0)
                || from.size(1) != weight.size(1)
                || Tensors.type(from) != Tensors.type(weight)) {
            throw new IllegalArgumentException("from is " + Tensors.describe(from) + " and weight is "
                    + Tensors.describe(weight) + ": they must be alike; convert one of them");
        }
        boolean same = from.storage_offset() == weight.storage_offset()
                && from.stride(0) == weight.stride(0)
                && from.stride(1) == weight.stride(1);
        if (!same && mayOverlap(weight, from)) {
            throw new IllegalArgumentException("from shares memory with weight: pass a copy of it, or weight itself");
        }
    }

    static void merge(Tensor weight, Tensor from, List<LowRank> updates, Tensor rowFactors) {
        merge(weight, from, updates);
        if (updates.isEmpty()) {
            throw new IllegalArgumentException("updates is empty: pass at least one, or multiply the weight itself");
        }
        type("rowFactors", rowFactors);
        device("rowFactors", rowFactors, weight, "weight");
        if (Tensors.type(rowFactors) != ScalarType.Float
                || rowFactors.dim() != 1
                || rowFactors.size(0) != weight.size(0)
                || !rowFactors.is_contiguous()) {
            throw new IllegalArgumentException("rowFactors is " + Tensors.describe(rowFactors) + " and weight is "
                    + Tensors.describe(weight) + ": pass one contiguous float32 number for each row");
        }
        try (Tensor column = rowFactors.unsqueeze(1)) {
            if (mayOverlap(weight, column)) {
                throw new IllegalArgumentException("rowFactors shares memory with weight: pass a copy of it");
            }
        }
    }

    static void lowRankUpdate(Tensor y, Tensor x, int[] rows, List<LowRank> adapters) {
        rows(y, x, rows, adapters.size());
        for (int i = 0; i < adapters.size(); i++) {
            LowRank adapter = adapters.get(i);
            String name = "adapters[" + i + "]";
            factors(name, adapter, y, "y");
            if (adapter.in() != x.size(1) || adapter.out() != y.size(1)) {
                throw new IllegalArgumentException(name + " maps " + adapter.in() + " to " + adapter.out()
                        + " features but x is " + Tensors.describe(x) + " and y is " + Tensors.describe(y)
                        + ": pass the adapter of this layer");
            }
        }
    }

    private static void rows(Tensor y, Tensor x, int[] rows, int adapters) {
        matrix("y", y);
        matrix("x", x);
        writable("y", y);
        device("x", x, y, "y");
        if (x.size(0) != y.size(0)) {
            throw new IllegalArgumentException("x is " + Tensors.describe(x) + " and y is " + Tensors.describe(y)
                    + ": both must have one row per token");
        }
        if (rows.length != y.size(0)) {
            throw new IllegalArgumentException("rows has " + rows.length + " entries but y has " + y.size(0)
                    + " rows: pass one adapter index, or -1, for each row");
        }
        if (mayOverlap(y, x)) {
            throw new IllegalArgumentException("x and y share memory: pass a copy of x");
        }
        rowNumbers(rows, adapters);
    }

    static void rowNumbers(int[] rows, int count) {
        for (int t = 0; t < rows.length; t++) {
            if (rows[t] < -1 || rows[t] >= count) {
                throw new IllegalArgumentException("rows[" + t + "] is " + rows[t] + " but there are " + count
                        + " adapters: use -1 for a row without one");
            }
        }
    }

    static void lowRankUpdate(Tensor y, Tensor x, int[] rows, LowRankTable adapters) {
        rows(y, x, rows, adapters.size());
        if (adapters.size() > 0) {
            if (adapters.in() != x.size(1) || adapters.out() != y.size(1)) {
                throw new IllegalArgumentException("adapters map " + adapters.in() + " to " + adapters.out()
                        + " features but x is " + Tensors.describe(x) + " and y is " + Tensors.describe(y)
                        + ": pass the adapters of this layer");
            }
            device("adapters[0].a", adapters.updates().get(0).a(), y, "y");
        }
    }

    /** What an update must be like whatever it is added to. */
    static void factors(String name, LowRank update) {
        type(name + ".a", update.a());
        type(name + ".b", update.b());
        scale(name, update);
    }

    static void scale(String name, LowRank update) {
        if (!Float.isFinite((float) update.scale())) {
            throw new IllegalArgumentException(name + ".scale is " + update.scale()
                    + ": it must be finite in float32; check lora_alpha and r of the adapter");
        }
    }

    static void matrix(String name, Tensor tensor) {
        type(name, tensor);
        twoDimensional(name, tensor);
    }

    /** A matrix that merges read and write: also of float8, which nothing computes with. */
    private static void storedMatrix(String name, Tensor tensor) {
        if (!tensor.defined() || Tensors.type(tensor) != ScalarType.Float8_e4m3fn) {
            type(name, tensor);
        }
        twoDimensional(name, tensor);
    }

    private static void twoDimensional(String name, Tensor tensor) {
        if (tensor.dim() != 2) {
            throw new IllegalArgumentException(name + " must have two dimensions but is " + Tensors.describe(tensor)
                    + ": pass a matrix view of it");
        }
    }

    static void type(String name, Tensor tensor) {
        if (!tensor.defined()) {
            throw new IllegalArgumentException(name + " is an undefined tensor: pass one that holds values");
        }
        if (tensor.layout().intern() != Layout.Strided) {
            throw new IllegalArgumentException(name + " is not a dense tensor: convert it with to_dense()");
        }
        ScalarType type = Tensors.type(tensor);
        if (type != ScalarType.Float && type != ScalarType.BFloat16 && type != ScalarType.Half) {
            throw new IllegalArgumentException(name + " is " + Tensors.describe(tensor)
                    + " but must be float32, bfloat16 or float16: convert it first");
        }
    }

    static void factors(String name, LowRank update, Tensor target, String targetName) {
        factor(name + ".a", update.a(), target, targetName);
        factor(name + ".b", update.b(), target, targetName);
        scale(name, update);
    }

    private static void factor(String name, Tensor factor, Tensor target, String targetName) {
        type(name, factor);
        device(name, factor, target, targetName);
        if (mayOverlap(target, factor)) {
            throw new IllegalArgumentException(name + " shares memory with " + targetName + ": pass a copy of it");
        }
    }

    static void device(String name, Tensor tensor, Tensor target, String targetName) {
        if (tensor.is_cpu() && target.is_cpu()) {
            return;
        }
        String device = deviceOf(tensor);
        String expected = deviceOf(target);
        if (!device.equals(expected)) {
            throw new IllegalArgumentException(name + " is on " + device + " but " + targetName + " is on " + expected
                    + ": move it there with to(device)");
        }
    }

    static String deviceOf(Tensor tensor) {
        try (PointerScope scope = new PointerScope()) {
            Device device = tensor.device();
            BytePointer text = device.str();
            return text.getString();
        }
    }

    /** Refuses an output in which two elements are the same memory, such as an expanded tensor. */
    static void writable(String name, Tensor tensor) {
        long rows = tensor.size(0);
        long columns = tensor.size(1);
        if (rows == 0 || columns == 0) {
            return;
        }
        long rowStride = tensor.stride(0);
        long columnStride = tensor.stride(1);
        boolean distinct = rows == 1
                ? columns == 1 || columnStride > 0
                : columns == 1
                        ? rowStride > 0
                        : rowStride >= columnStride
                                ? columnStride > 0 && rowStride > (columns - 1) * columnStride
                                : rowStride > 0 && columnStride > (rows - 1) * rowStride;
        if (!distinct) {
            throw new IllegalArgumentException(name + " has elements that share memory (strides " + rowStride + ", "
                    + columnStride + "), so it cannot be written: pass contiguous()");
        }
    }

    /** Whether two matrices may share an element; exact for ranges apart and for column blocks of one buffer. */
    static boolean mayOverlap(Tensor target, Tensor other) {
        if (target.numel() == 0 || other.numel() == 0 || !target.is_alias_of(other)) {
            return false;
        }
        long[] first = span(target);
        long[] second = span(other);
        if (first[1] <= second[0] || second[1] <= first[0]) {
            return false;
        }
        long pitch = target.stride(0) * target.element_size();
        if (pitch > 0 && pitch == other.stride(0) * other.element_size()) {
            long width = rowBytes(target);
            long shift = Math.floorMod(second[0] - first[0], pitch);
            return shift < width || shift + rowBytes(other) > pitch;
        }
        return true;
    }

    private static long[] span(Tensor tensor) {
        long start = tensor.storage_offset() * tensor.element_size();
        long size = rowBytes(tensor) + (tensor.size(0) - 1) * tensor.stride(0) * tensor.element_size();
        return new long[] {start, start + size};
    }

    private static long rowBytes(Tensor tensor) {
        return ((tensor.size(1) - 1) * tensor.stride(1) + 1) * tensor.element_size();
    }
}
