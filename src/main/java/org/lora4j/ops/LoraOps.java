package org.lora4j.ops;

import java.util.List;
import org.bytedeco.pytorch.Tensor;

/**
 * The operations adapters are made of. None of them records gradients.
 *
 * <p>Every operation accepts float32, bfloat16 and float16, mixed between its arguments, and any strides. Products are
 * accumulated in float32 and rounded to the output's type once.
 */
public interface LoraOps {
    /** The name the {@code lora4j.ops} property knows this implementation by. */
    String name();

    /** One line for a log: implementation, instruction set or device, threads. */
    String description();

    /**
     * Adds low-rank updates to a weight, in place: {@code W = round(W + sum_i s_i B_i A_i)}.
     *
     * @param weight W, shape (out, in); a transposed view is as good as any
     * @param updates the updates, each of shape (out, in); none leaves W as it is
     * @throws IllegalArgumentException naming the argument, if a shape, type or device does not fit
     */
    void merge(Tensor weight, List<LowRank> updates);

    /**
     * Adds to each row the update of its own adapter, in place: {@code y[t] += s_a B_a (A_a x[t])} with
     * {@code a = rows[t]}.
     *
     * @param y output, shape (T, out)
     * @param x input, shape (T, in); must not overlap y
     * @param rows for each of the T rows an index into {@code adapters}, or -1 for no adapter
     * @param adapters the adapters; ranks may differ
     * @throws IllegalArgumentException naming the argument, if a shape, type, device or index does not fit
     */
    void lowRankUpdate(Tensor y, Tensor x, int[] rows, List<LowRank> adapters);

    /**
     * As {@link #lowRankUpdate(Tensor, Tensor, int[], List)}, with updates that are described already: for steps that use
     * the same adapters again and again.
     */
    default void lowRankUpdate(Tensor y, Tensor x, int[] rows, LowRankTable adapters) {
        lowRankUpdate(y, x, rows, adapters.updates());
    }

    /**
     * Attention over keys and values that lie in pages: {@code out[t] = softmax(q[t] k / sqrt(d)) v} for each head, over the
     * positions a token sees.
     *
     * @param out receives the result, shape (T, heads * d), contiguous
     * @param query shape (T, heads * d), contiguous
     * @param keys shape (slots, kvHeads * d), contiguous, in the type of the query
     * @param values likewise
     * @throws IllegalArgumentException naming the argument, if a shape, type or page does not fit
     */
    default void attention(Tensor out, Tensor query, Tensor keys, Tensor values, Paging paging) {
        TorchAttention.attend(out, query, keys, values, paging);
    }

    /** Whether a token's result of {@link #attention} has the same bits in every batch, with tensors like this one. */
    default boolean isAttentionRowStable(Tensor like) {
        return false;
    }
}
