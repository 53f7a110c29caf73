package org.lora4j.ops;

import java.util.List;
import java.util.stream.IntStream;
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
}
