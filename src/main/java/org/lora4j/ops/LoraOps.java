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
}
