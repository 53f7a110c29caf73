package org.lora4j.ops;

import java.lang.ref.Reference;
import java.util.List;
import java.util.Objects;
import java.util.stream.Stream;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.ScalarTypeOptional;
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
                + (NativeLibrary.mergesFast() ? "; fast merges on CUDA" : "") + ")";
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
    public void merge(Tensor weight, Tensor from, List<LowRank> updates) {
        Checks.merge(weight, from, updates);
        if (elsewhere != null && !hasKernels(weight)) {
            elsewhere.merge(weight, from, updates);
            return;
        }
        merge(weight, from, updates, null, null);
    }

    @Override
    public boolean mergeChecked(Tensor weight, Tensor from, List<LowRank> updates) {
        Checks.merge(weight, from, updates);
        if (elsewhere != null && !hasKernels(weight)) {
            return elsewhere.mergeChecked(weight, from, updates);
        }
        return checked(weight, from, updates, null);
    }

    @Override
    public boolean mergeRescaled(Tensor weight, Tensor from, List<LowRank> updates, Tensor rowFactors, boolean check) {
        Checks.merge(weight, from, updates, rowFactors);
        if (elsewhere != null && !hasKernels(weight)) {
            return elsewhere.mergeRescaled(weight, from, updates, rowFactors, check);
        }
        if (check) {
            return checked(weight, from, updates, rowFactors);
        }
        merge(weight, from, updates, rowFactors, null);
        return true;
    }

    private static boolean checked(Tensor weight, Tensor from, List<LowRank> updates, @Nullable Tensor rowFactors) {
        try (PointerScope scope = new PointerScope()) {
            Tensor notFinite = torch.zeros(1).to(weight.device(), ScalarType.Int);
            merge(weight, from, updates, rowFactors, notFinite);
            return notFinite.item_int() == 0;
        }
    }

    private static void merge(
            Tensor weight,
            Tensor from,
            List<LowRank> updates,
            @Nullable Tensor rowFactors,
            @Nullable Tensor notFinite) {
        if (weight.numel() == 0) {
            return;
        }
        long[] place = place(weight);
        call(Lora4j.l4_merge_checked(
                matrix(weight),
                matrix(from),
                lowRanks(updates),
                updates.size(),
                rowFactors == null ? null : rowFactors.data_ptr(),
                notFinite == null ? null : notFinite.data_ptr(),
                place));
        written(weight);
        Reference.reachabilityFence(from);
        Reference.reachabilityFence(updates);
        Reference.reachabilityFence(rowFactors);
        Reference.reachabilityFence(notFinite);
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
    public void lowRankBackward(
            @Nullable Tensor dx,
            Tensor dy,
            Tensor x,
            @Nullable Tensor h,
            int[] rows,
            List<LowRank> adapters,
            List<LowRankGradient> gradients) {
        BackwardChecks.check(dx, dy, x, h, rows, adapters, gradients);
        if (elsewhere != null && !hasKernels(dy)) {
            elsewhere.lowRankBackward(dx, dy, x, h, rows, adapters, gradients);
            return;
        }
        if (adapters.isEmpty() || rows.length == 0) {
            return;
        }
        long[] place = place(dy);
        long[] targets = new long[gradients.size() * Lora4j.GRADIENT_FIELDS];
        for (int i = 0; i < gradients.size(); i++) {
            describeIfAny(gradients.get(i).a(), targets, i * Lora4j.GRADIENT_FIELDS);
            describeIfAny(gradients.get(i).b(), targets, i * Lora4j.GRADIENT_FIELDS + Lora4j.MATRIX_FIELDS);
        }
        long rank = adapters.stream().mapToLong(LowRank::rank).max().orElse(0);
        try (Tensor scratch = scratch(dy, Lora4j.l4_low_rank_backward_scratch(x.size(1), dy.size(1), rank, place))) {
            call(Lora4j.l4_low_rank_backward(
                    dx == null ? null : matrix(dx),
                    matrix(dy),
                    matrix(x),
                    h == null ? null : matrix(h),
                    rows,
                    lowRanks(adapters),
                    targets,
                    adapters.size(),
                    address(scratch),
                    scratch.numel(),
                    place));
        }
        if (dx != null) {
            written(dx);
        }
        for (LowRankGradient gradient : gradients) {
            Stream.of(gradient.a(), gradient.b()).filter(Objects::nonNull).forEach(NativeOps::written);
        }
        Reference.reachabilityFence(x);
        Reference.reachabilityFence(h);
        Reference.reachabilityFence(adapters);
    }

    private static void describeIfAny(@Nullable Tensor tensor, long[] fields, int at) {
        if (tensor != null) {
            describe(tensor, fields, at);
        }
    }

    @Override
    public Tensor gram(Tensor x, Tensor y) {
        DenseChecks.gram(x, y);
        if (elsewhere != null && !hasKernels(x)) {
            return elsewhere.gram(x, y);
        }
        long[] place = place(x);
        Tensor result = Scopes.within(() -> x.new_empty(
                new long[] {x.size(0), y.size(0)}, x.options().dtype(new ScalarTypeOptional(ScalarType.Double))));
        call(Lora4j.l4_gram(address(result), matrix(x), matrix(y), place));
        Reference.reachabilityFence(x);
        Reference.reachabilityFence(y);
        return result;
    }

    @Override
    public void rowNorms(Tensor norms, Tensor weight, LowRank update) {
        DenseChecks.rowNorms(norms, weight, update);
        if (elsewhere != null && !hasKernels(norms)) {
            elsewhere.rowNorms(norms, weight, update);
            return;
        }
        long[] place = place(norms);
        try (Tensor column = norms.unsqueeze(1);
                Tensor scratch = scratch(norms, Lora4j.l4_row_norms_scratch(update.rank(), place))) {
            call(Lora4j.l4_row_norms(
                    matrix(column),
                    matrix(weight),
                    lowRanks(List.of(update)),
                    address(scratch),
                    scratch.numel(),
                    place));
        }
        written(norms);
        Reference.reachabilityFence(weight);
        Reference.reachabilityFence(update);
    }

    @Override
    public void dequantize(Tensor target, QuantizedWeight weight, long firstRow) {
        DenseChecks.dequantize(target, weight, firstRow);
        if (elsewhere != null && !hasKernels(target)) {
            elsewhere.dequantize(target, weight, firstRow);
            return;
        }
        try (PointerScope scope = new PointerScope()) {
            QuantizedFields fields = QuantizedFields.of(weight);
            call(Lora4j.l4_dequantize(matrix(target), fields.values(), firstRow, place(target)));
            Reference.reachabilityFence(fields);
        }
        written(target);
        Reference.reachabilityFence(weight);
    }

    @Override
    public void scatter(Tensor pool, int[] pages, List<Tensor> matrices) {
        DenseChecks.pages(pool, pages, matrices, true);
        if (elsewhere != null && !hasKernels(pool)) {
            elsewhere.scatter(pool, pages, matrices);
            return;
        }
        call(Lora4j.l4_scatter(pool(pool), pages, pages.length, matrices(matrices), matrices.size(), place(pool)));
        written(pool);
        Reference.reachabilityFence(matrices);
    }

    @Override
    public void gather(List<Tensor> matrices, Tensor pool, int[] pages) {
        DenseChecks.pages(pool, pages, matrices, false);
        if (elsewhere != null && !hasKernels(pool)) {
            elsewhere.gather(matrices, pool, pages);
            return;
        }
        call(Lora4j.l4_gather(matrices(matrices), matrices.size(), pool(pool), pages, pages.length, place(pool)));
        matrices.forEach(NativeOps::written);
        Reference.reachabilityFence(pool);
    }

    private static long[] pool(Tensor pool) {
        return new long[] {address(pool), pool.size(0), pool.size(1), dtype(Tensors.type(pool))};
    }

    private static long[] matrices(List<Tensor> list) {
        long[] fields = new long[list.size() * Lora4j.MATRIX_FIELDS];
        for (int i = 0; i < list.size(); i++) {
            describe(list.get(i), fields, i * Lora4j.MATRIX_FIELDS);
        }
        return fields;
    }

    @Override
    public void combine(Tensor y, List<TaskTensor> tensors, SignElection election) {
        CombineChecks.check(y, tensors);
        if (elsewhere != null && !hasKernels(y)) {
            elsewhere.combine(y, tensors, election);
            return;
        }
        if (y.numel() == 0) {
            return;
        }
        try (PointerScope scope = new PointerScope()) {
            Tensor out = CombineChecks.matrix(y);
            List<Tensor> inputs = tensors.stream()
                    .map(each -> CombineChecks.matrix(each.tensor()))
                    .toList();
            long[] fields = new long[tensors.size() * Lora4j.TASK_TENSOR_FIELDS];
            for (int i = 0; i < inputs.size(); i++) {
                describe(inputs.get(i), tensors.get(i), fields, i * Lora4j.TASK_TENSOR_FIELDS);
            }
            long[] place = place(y);
            Tensor scratch = scratch(y, Lora4j.l4_combine_scratch(out.size(0), out.size(1), place));
            call(Lora4j.l4_combine(
                    matrix(out), fields, inputs.size(), election.ordinal(), address(scratch), scratch.numel(), place));
            Reference.reachabilityFence(inputs);
        }
        written(y);
    }

    private static void describe(Tensor matrix, TaskTensor of, long[] fields, int at) {
        describe(matrix, fields, at);
        int next = at + Lora4j.MATRIX_FIELDS;
        fields[next] = Double.doubleToRawLongBits(of.weight());
        if (of.pruning() instanceof Pruning.Magnitude magnitude) {
            fields[next + 1] = Lora4j.LARGEST;
            fields[next + 2] = magnitude.kept(matrix.numel());
        } else if (of.pruning() instanceof Pruning.Random random) {
            fields[next + 1] = Lora4j.RANDOM;
            fields[next + 3] = Double.doubleToRawLongBits(random.density());
            fields[next + 4] = random.rescale() ? 1 : 0;
            fields[next + 5] = random.seed();
            fields[next + 6] = random.stream();
        }
    }

    /** Memory for a call, on the device of a tensor. */
    private static Tensor scratch(Tensor like, long bytes) {
        if (bytes < 0) {
            call((int) -bytes);
        }
        try (PointerScope scope = new PointerScope()) {
            return Tensors.keep(
                    like.new_empty(new long[] {bytes}, like.options().dtype(new ScalarTypeOptional(ScalarType.Byte))));
        }
    }

    static long address(Tensor tensor) {
        Pointer data = tensor.data_ptr();
        return data == null ? 0 : data.address();
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
        fields[at] = address(tensor);
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
            case Float8_e4m3fn -> Lora4j.F8_E4M3;
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
