package org.lora4j.ops.binding;

import java.nio.file.Path;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.javacpp.annotation.Cast;
import org.bytedeco.javacpp.annotation.Platform;
import org.bytedeco.javacpp.annotation.Properties;
import org.jspecify.annotations.Nullable;

/**
 * The functions of {@code lora4j.h}, one to one; the header says what they do.
 *
 * <p>Structures are passed as {@code long[]}, one element per 8-byte field: 6 for an {@code l4_matrix} (address, rows,
 * columns, row stride, column stride, type), 13 for an {@code l4_low_rank} (A, B, the bits of the scale) and for an
 * {@code l4_task_tensor}, 12 for an {@code l4_low_rank_gradient} and an {@code l4_quantized}, 4 for an {@code l4_pool} and 3 for an {@code l4_place}. The caller keeps the memory behind the addresses alive.
 */
@Properties(value = @Platform(include = "lora4j/lora4j.h", library = "jnilora4j"))
public final class Lora4j {
    public static final int OK = 0;
    public static final int BAD_ARGUMENT = 1;
    public static final int UNSUPPORTED = 2;
    public static final int FAILED = 3;

    public static final int F32 = 0;
    public static final int BF16 = 1;
    public static final int F16 = 2;
    public static final int F8_E4M3 = 3;

    public static final int CPU = 0;
    public static final int CUDA = 1;

    public static final int MATRIX_FIELDS = 6;
    public static final int LOW_RANK_FIELDS = 2 * MATRIX_FIELDS + 1;

    public static final int GRADIENT_FIELDS = 2 * MATRIX_FIELDS;
    public static final int TASK_TENSOR_FIELDS = MATRIX_FIELDS + 7;

    public static final int LARGEST = 1;
    public static final int RANDOM = 2;

    private Lora4j() {}

    /**
     * Loads the library from a file; LibTorch must be loaded, so that both share one OpenMP.
     *
     * @throws UnsatisfiedLinkError if it does not link
     */
    public static void load(Path file) {
        System.load(file.toAbsolutePath().toString());
    }

    public static native @Cast("const char*") String l4_version();

    public static native @Cast("const char*") String l4_build_info();

    public static native int l4_has_device(int device);

    public static native @Cast("const char*") String l4_cpu_isa();

    public static native int l4_set_cpu_isa(@Cast("const char*") @Nullable String name);

    public static native int l4_set_merge(@Cast("const char*") @Nullable String mode);

    public static native int l4_set_threads(int threads);

    public static native @Cast("const char*") String l4_last_error();

    public static native int l4_merge(
            @Cast("const l4_matrix*") long[] w,
            @Cast("const l4_low_rank*") long[] updates,
            @Cast("int64_t") long count,
            @Cast("const l4_place*") long[] place);

    /** {@code rowFactors} and {@code notFinite} are addresses where the weight is, or null. */
    public static native int l4_merge_checked(
            @Cast("const l4_matrix*") long[] w,
            @Cast("const l4_matrix*") long @Nullable [] from,
            @Cast("const l4_low_rank*") long[] updates,
            @Cast("int64_t") long count,
            @Cast("const float*") @Nullable Pointer rowFactors,
            @Cast("int32_t*") @Nullable Pointer notFinite,
            @Cast("const l4_place*") long[] place);

    public static native int l4_low_rank_update(
            @Cast("const l4_matrix*") long[] y,
            @Cast("const l4_matrix*") long[] x,
            @Cast("const int32_t*") int[] rows,
            @Cast("const l4_low_rank*") long[] adapters,
            @Cast("int64_t") long count,
            @Cast("const l4_place*") long[] place);

    public static native @Cast("int64_t") long l4_combine_scratch(
            @Cast("int64_t") long rows, @Cast("int64_t") long cols, @Cast("const l4_place*") long[] place);

    public static native int l4_combine(
            @Cast("const l4_matrix*") long[] y,
            @Cast("const l4_task_tensor*") long[] tensors,
            @Cast("int64_t") long count,
            @Cast("int64_t") long election,
            @Cast("void*") long scratch,
            @Cast("int64_t") long scratchBytes,
            @Cast("const l4_place*") long[] place);

    public static native @Cast("int64_t") long l4_low_rank_backward_scratch(
            @Cast("int64_t") long in,
            @Cast("int64_t") long out,
            @Cast("int64_t") long rank,
            @Cast("const l4_place*") long[] place);

    public static native int l4_low_rank_backward(
            @Cast("const l4_matrix*") long @Nullable [] dx,
            @Cast("const l4_matrix*") long[] dy,
            @Cast("const l4_matrix*") long[] x,
            @Cast("const l4_matrix*") long @Nullable [] h,
            @Cast("const int32_t*") int[] rows,
            @Cast("const l4_low_rank*") long[] adapters,
            @Cast("const l4_low_rank_gradient*") long[] gradients,
            @Cast("int64_t") long count,
            @Cast("void*") long scratch,
            @Cast("int64_t") long scratchBytes,
            @Cast("const l4_place*") long[] place);

    public static native int l4_gram(
            @Cast("double*") long g,
            @Cast("const l4_matrix*") long[] x,
            @Cast("const l4_matrix*") long[] y,
            @Cast("const l4_place*") long[] place);

    public static native @Cast("int64_t") long l4_row_norms_scratch(
            @Cast("int64_t") long rank, @Cast("const l4_place*") long[] place);

    public static native int l4_row_norms(
            @Cast("const l4_matrix*") long[] norms,
            @Cast("const l4_matrix*") long[] w,
            @Cast("const l4_low_rank*") long[] update,
            @Cast("void*") long scratch,
            @Cast("int64_t") long scratchBytes,
            @Cast("const l4_place*") long[] place);

    public static native int l4_dequantize(
            @Cast("const l4_matrix*") long[] w,
            @Cast("const l4_quantized*") long[] weight,
            @Cast("int64_t") long firstRow,
            @Cast("const l4_place*") long[] place);

    public static native int l4_scatter(
            @Cast("const l4_pool*") long[] pool,
            @Cast("const int32_t*") int[] pages,
            @Cast("int64_t") long pageCount,
            @Cast("const l4_matrix*") long[] matrices,
            @Cast("int64_t") long count,
            @Cast("const l4_place*") long[] place);

    public static native int l4_gather(
            @Cast("const l4_matrix*") long[] matrices,
            @Cast("int64_t") long count,
            @Cast("const l4_pool*") long[] pool,
            @Cast("const int32_t*") int[] pages,
            @Cast("int64_t") long pageCount,
            @Cast("const l4_place*") long[] place);

    public static native int l4_paged_attention(
            @Cast("const l4_matrix*") long[] out,
            @Cast("const l4_matrix*") long[] query,
            @Cast("const l4_matrix*") long[] keys,
            @Cast("const l4_matrix*") long[] values,
            @Cast("const int32_t*") int[] sequences,
            @Cast("const int32_t*") int[] positions,
            @Cast("const int32_t*") int[] pages,
            @Cast("const l4_paging*") long[] paging);
}
