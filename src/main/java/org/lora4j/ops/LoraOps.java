package org.lora4j.ops;

import java.util.List;
import java.util.stream.IntStream;
import org.bytedeco.pytorch.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * The operations adapters are made of. None of them records gradients.
 *
 * <p>Every operation accepts float32, bfloat16 and float16, mixed between its arguments, and any strides. Products are
 * accumulated in float32 and rounded to the output's type once. Weights of a merge may also be float8_e4m3fn.
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
     * Writes a weight with low-rank updates added, {@code W = round(F + sum_i s_i B_i A_i)}, and leaves the original alone.
     *
     * @param weight W, shape (out, in); receives the result
     * @param from F, of the shape, type and device of W; shares no memory with it, or is W itself
     * @param updates as in {@link #merge(Tensor, List)}; none copies F
     * @throws IllegalArgumentException naming the argument, if a shape, type or device does not fit
     */
    void merge(Tensor weight, Tensor from, List<LowRank> updates);

    /**
     * As {@link #merge(Tensor, Tensor, List)}; also finds whether the result is finite. On a GPU it waits for that.
     *
     * @return false if an element of the result is infinite or NaN
     */
    boolean mergeChecked(Tensor weight, Tensor from, List<LowRank> updates);

    /**
     * As {@link #merge(Tensor, Tensor, List)}, with each row of the sum multiplied by a number in float32 before the
     * result's one rounding: {@code W = round(diag(f) (F + sum_i s_i B_i A_i))}. DoRA (arXiv:2402.09353) merges so, with
     * magnitudes over {@link #rowNorms}.
     *
     * @param updates at least one
     * @param rowFactors f, contiguous float32 (out) on W's device
     * @param check whether to find out if the result is finite
     * @return false if that was asked for and an element of the result is infinite or NaN
     * @throws IllegalArgumentException naming the argument, if a shape, type or device does not fit
     */
    boolean mergeRescaled(Tensor weight, Tensor from, List<LowRank> updates, Tensor rowFactors, boolean check);

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
     * Adds the gradients of {@link #lowRankUpdate}, in place. With {@code u[t] = B_a^T dy[t]} and {@code a = rows[t]}:
     * {@code dx[t] += s_a A_a^T u[t]}, and for each adapter over its rows {@code dA_a += s_a sum_t u[t] x[t]^T} and
     * {@code dB_a += s_a sum_t dy[t] (A_a x[t])^T}, each sum in float32 and rounded once.
     *
     * @param dx gradient of x, shape (T, in), or null if it is not wanted
     * @param dy gradient of y, shape (T, out)
     * @param x input, shape (T, in)
     * @param h the products {@code A_a x[t]}, shape (T, at least the largest rank), if the forward pass kept them; else null
     * @param rows as in {@link #lowRankUpdate}
     * @param gradients one for each adapter; what is written shares memory with nothing else
     * @throws IllegalArgumentException naming the argument, if a shape, type, device or index does not fit
     */
    void lowRankBackward(
            @Nullable Tensor dx,
            Tensor dy,
            Tensor x,
            @Nullable Tensor h,
            int[] rows,
            List<LowRank> adapters,
            List<LowRankGradient> gradients);

    /**
     * The products of all rows of x with all rows of y, in float64: a Gram matrix, if y is x.
     *
     * @param x shape (m, n)
     * @param y shape (k, n)
     * @return float64 (m, k)
     * @throws IllegalArgumentException naming the argument, if a shape, type or device does not fit
     */
    Tensor gram(Tensor x, Tensor y);

    /**
     * The norms of the rows of {@code W + s B A}, which DoRA (arXiv:2402.09353) divides by, from the factors: the sum is
     * never formed. Computed in float64, rounded to float32 and then to the result's type.
     *
     * @param norms the result, shape (out)
     * @param weight W, shape (out, in); a transposed view is as good as any
     * @throws IllegalArgumentException naming the argument, if a shape, type or device does not fit
     */
    void rowNorms(Tensor norms, Tensor weight, LowRank update);

    /**
     * Some rows of the weight a quantized one stands for, as {@link QuantizedWeight#dequantize} gives them.
     *
     * @param target the result, shape (n, columns): rows {@code firstRow}, {@code firstRow + 1}, ...
     * @throws IllegalArgumentException naming the argument, if a shape, type, device or row does not fit
     */
    void dequantize(Tensor target, QuantizedWeight weight, long firstRow);

    /**
     * Copies matrices into pages of a pool: their elements, row by row and one matrix after the other, fill the pages in
     * the order of the list. What else the pages hold stays. Elements keep their bits where types agree, else they are
     * rounded once. A matrix in consecutive pages is contiguous there.
     *
     * @param pool contiguous, shape (pages, elements of a page)
     * @param pages numbers of pages, each once, with room for all matrices
     * @throws IllegalArgumentException naming the argument, if a shape, type, device or page does not fit
     */
    void scatter(Tensor pool, int[] pages, List<Tensor> matrices);

    /** The inverse of {@link #scatter}: fills matrices, which share no memory, from the pages. */
    void gather(List<Tensor> matrices, Tensor pool, int[] pages);

    /**
     * Combines pruned tensors t_i, element by element: {@code y = sum_i w_i t_i}, or with an election of signs the sum over
     * those of the elected sign, divided by their number.
     *
     * <p>In float32, a rounding after each step and i ascending, so the native operations, LibTorch's on the CPU and, for
     * float32, PEFT's {@code merge_utils} give the same bits. NaN stays NaN.
     *
     * @param y the result, contiguous or a matrix of any strides; it may be one of the tensors
     * @param tensors at least one, all of y's shape
     * @throws IllegalArgumentException naming the argument, if a shape, type, device or weight does not fit
     */
    void combine(Tensor y, List<TaskTensor> tensors, SignElection election);

    /** As {@link #combine(Tensor, List, SignElection)}, into a new tensor of the first one's shape and type. */
    default Tensor combine(List<TaskTensor> tensors, SignElection election) {
        if (tensors.isEmpty()) {
            throw new IllegalArgumentException("tensors is empty: pass at least one");
        }
        Tensor first = tensors.get(0).tensor();
        Tensor y = first.defined() ? first.new_empty(Tensors.shape(first)) : new Tensor();
        combine(y, tensors, election);
        return y;
    }

    /** A tensor's largest magnitudes, the rest zero; see {@link Pruning#magnitude}. */
    default Tensor trim(Tensor tensor, double density) {
        return combine(List.of(new TaskTensor(tensor, 1, Pruning.magnitude(density))), SignElection.NONE);
    }

    /** A random part of a tensor, the rest zero; see {@link Pruning#random}. */
    default Tensor prune(Tensor tensor, double density, boolean rescale, long seed, long stream) {
        Pruning pruning = Pruning.random(density, rescale, seed, stream);
        return combine(List.of(new TaskTensor(tensor, 1, pruning)), SignElection.NONE);
    }

    /**
     * TIES in one pass: each tensor trimmed, signs elected, disjoint mean.
     *
     * @param weights one a tensor
     * @param density of each tensor
     * @throws IllegalArgumentException also if there are not as many weights as tensors
     */
    default Tensor ties(List<Tensor> tensors, double[] weights, double density, SignElection election) {
        if (weights.length != tensors.size()) {
            throw new IllegalArgumentException("weights has " + weights.length + " entries but tensors has "
                    + tensors.size() + ": pass one weight for each tensor");
        }
        List<TaskTensor> trimmed = IntStream.range(0, weights.length)
                .mapToObj(i -> new TaskTensor(tensors.get(i), weights[i], Pruning.magnitude(density)))
                .toList();
        return combine(trimmed, election);
    }

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
