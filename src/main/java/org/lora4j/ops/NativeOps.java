package org.lora4j.ops;

import java.lang.ref.Reference;
import java.util.List;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.jspecify.annotations.Nullable;
import org.lora4j.ops.binding.Lora4j;

/**
 * The kernels of the native library, called with the addresses, sizes and strides of the tensors.
 *
 * <p>On the CPU an operation uses as many threads as LibTorch does on the calling thread; on CUDA it is queued on
 * LibTorch's current stream.
 */
final class NativeOps implements LoraOps {
    private final @Nullable LoraOps elsewhere;

    /**
     * @param elsewhere computes where the library has no kernels, such as on CUDA in a CPU build; null refuses
     * @throws IllegalStateException naming the file, the reason and the next step, if the library does not load
     */
    NativeOps(@Nullable LoraOps elsewhere) {
        NativeLibrary.load();
        this.elsewhere = elsewhere;
    }

    @Override
    public String name() {
        return "native";
    }

    @Override
    public String description() {
        return "native: " + Lora4j.l4_cpu_isa() + ", " + torch.get_num_threads() + " threads (" + Lora4j.l4_build_info()
                + ")";
    }

    @Override
    public void merge(Tensor weight, List<LowRank> updates) {
        Checks.merge(weight, updates);
        if (elsewhere != null && !hasKernels(weight)) {
            elsewhere.merge(weight, updates);
            return;
        }
        if (updates.isEmpty() || weight.numel() == 0) {
            return;
        }
        long[] place = place(weight);
        call(Lora4j.l4_merge(matrix(weight), lowRanks(updates), updates.size(), place));
        written(weight);
        Reference.reachabilityFence(updates);
    }

    @Override
    public void lowRankUpdate(Tensor y, Tensor x, int[] rows, List<LowRank> adapters) {
        Checks.lowRankUpdate(y, x, rows, adapters);
        if (elsewhere != null && !hasKernels(y)) {
            elsewhere.lowRankUpdate(y, x, rows, adapters);
            return;
        }
        if (adapters.isEmpty() || y.numel() == 0) {
            return;
        }
        long[] place = place(y);
        call(Lora4j.l4_low_rank_update(matrix(y), matrix(x), rows, lowRanks(adapters), adapters.size(), place));
        written(y);
        Reference.reachabilityFence(x);
        Reference.reachabilityFence(adapters);
    }

    @Override
    public void lowRankUpdate(Tensor y, Tensor x, int[] rows, LowRankTable adapters) {
        if (elsewhere != null && !hasKernels(y)) {
            elsewhere.lowRankUpdate(y, x, rows, adapters);
            return;
        }
        Checks.lowRankUpdate(y, x, rows, adapters);
        if (adapters.size() == 0 || y.numel() == 0) {
            return;
        }
        long[] place = place(y);
        call(Lora4j.l4_low_rank_update(matrix(y), matrix(x), rows, adapters.fields(), adapters.size(), place));
        written(y);
        Reference.reachabilityFence(x);
        Reference.reachabilityFence(adapters);
    }

    @Override
    public void attention(Tensor out, Tensor query, Tensor keys, Tensor values, Paging paging) {
        if (!query.is_cpu()) {
            TorchAttention.attend(out, query, keys, values, paging);
            return;
        }
        place(query);
        double width = (double) query.size(1) / paging.heads();
        long[] fields = {
            paging.heads(),
            paging.kvHeads(),
            paging.pageTokens(),
            paging.pages().length / paging.tableWidth(),
            paging.tableWidth(),
            paging.window(),
            Double.doubleToRawLongBits(1 / Math.sqrt(width))
        };
        call(Lora4j.l4_paged_attention(
                matrix(out),
                matrix(query),
                matrix(keys),
                matrix(values),
                paging.sequences(),
                paging.positions(),
                paging.pages(),
                fields));
        written(out);
    }

    @Override
    public boolean isAttentionRowStable(Tensor like) {
        return like.is_cpu();
    }

    private static boolean hasKernels(Tensor tensor) {
        return tensor.is_cpu() || tensor.is_cuda() && Lora4j.l4_has_device(Lora4j.CUDA) != 0;
    }

    private static long[] place(Tensor tensor) {
        if (tensor.is_cpu()) {
            call(Lora4j.l4_set_threads(torch.get_num_threads()));
            return new long[] {Lora4j.CPU, 0, 0};
        }
        if (!hasKernels(tensor)) {
            throw new UnsupportedOperationException("The native operations have no kernels for "
                    + Checks.deviceOf(tensor) + " in this build (" + Lora4j.l4_build_info()
                    + "): build with -Pcuda where nvcc is installed, or do not force -Dlora4j.ops=native");
        }
        byte device = tensor.device().index();
        return new long[] {Lora4j.CUDA, device, CudaStream.current(device)};
    }

    private static long[] matrix(Tensor tensor) {
        long[] fields = new long[Lora4j.MATRIX_FIELDS];
        describe(tensor, fields, 0);
        return fields;
    }

    /** Replaces the scale of one of the updates that {@link #lowRanks} described. */
    static void putScale(long[] fields, int update, double scale) {
        fields[update * Lora4j.LOW_RANK_FIELDS + 2 * Lora4j.MATRIX_FIELDS] = Double.doubleToRawLongBits(scale);
    }

    /** The updates as the library takes them. */
    static long[] lowRanks(List<LowRank> list) {
        long[] fields = new long[list.size() * Lora4j.LOW_RANK_FIELDS];
        int at = 0;
        for (LowRank update : list) {
            describe(update.a(), fields, at);
            describe(update.b(), fields, at + Lora4j.MATRIX_FIELDS);
            fields[at + 2 * Lora4j.MATRIX_FIELDS] = Double.doubleToRawLongBits(update.scale());
            at += Lora4j.LOW_RANK_FIELDS;
        }
        return fields;
    }

    private static void describe(Tensor tensor, long[] fields, int at) {
        Pointer data = tensor.data_ptr();
        fields[at] = data == null ? 0 : data.address();
        fields[at + 1] = tensor.size(0);
        fields[at + 2] = tensor.size(1);
        fields[at + 3] = tensor.stride(0);
        fields[at + 4] = tensor.stride(1);
        fields[at + 5] = dtype(Tensors.type(tensor));
    }

    private static int dtype(ScalarType type) {
        return switch (type) {
            case Float -> Lora4j.F32;
            case BFloat16 -> Lora4j.BF16;
            case Half -> Lora4j.F16;
            default -> throw new IllegalArgumentException(type + " must be float32, bfloat16 or float16");
        };
    }

    /** Tells autograd that the tensor changed, as LibTorch's own in-place operations do. */
    private static void written(Tensor tensor) {
        if (!tensor.is_inference()) {
            tensor.unsafeGetTensorImpl().bump_version();
        }
    }

    private static void call(int code) {
        switch (code) {
            case Lora4j.OK -> {}
            case Lora4j.BAD_ARGUMENT -> throw new IllegalArgumentException(Lora4j.l4_last_error());
            case Lora4j.UNSUPPORTED -> throw new UnsupportedOperationException(Lora4j.l4_last_error());
            default -> throw new IllegalStateException(Lora4j.l4_last_error());
        }
    }
}
