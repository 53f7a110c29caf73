package org.lora4j.model.causal;

import static org.bytedeco.pytorch.global.torch.arange;

import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptional;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.jspecify.annotations.Nullable;

/**
 * What the layers of one forward pass share.
 *
 * @param batch B
 * @param tokens T, the tokens of this pass
 * @param cos cosines, broadcastable to (B, T, heads, D)
 * @param sin sines with the sign of the rotation, likewise
 * @param full what a query sees in a layer of full attention
 * @param sliding the same in a layer with a sliding window
 * @param cache keys and values of earlier passes
 * @param dropout probability of dropping an attention weight
 * @param paged keys and values in pages; B is then the number of tokens, T is 1, and sights and cache are not used
 */
record Pass(
        long batch,
        long tokens,
        Tensor cos,
        Tensor sin,
        Sight full,
        Sight sliding,
        @Nullable KvCache cache,
        double dropout,
        @Nullable PagedPass paged) {

    /** A pass over tokens of several sequences. */
    static Pass paged(long tokens, Tensor cos, Tensor sin, PagedPass paged) {
        return new Pass(tokens, 1, cos, sin, Sight.ALL, Sight.ALL, null, 0, paged);
    }

    /**
     * Which keys a query attends to.
     *
     * @param mask true where it does, broadcastable to (B, heads, T, S); absent for all keys or plain causality
     * @param causal whether the mask is the lower triangle, which LibTorch has a faster path for
     */
    record Sight(TensorOptional mask, boolean causal) {
        private static final Sight ALL = new Sight(Torch.NO_TENSOR, false);
        private static final Sight CAUSAL = new Sight(Torch.NO_TENSOR, true);

        /**
         * Query i of this pass is token {@code past + i} and sees token j if {@code j <= past + i},
         * {@code j > past + i - window} and j is no padding.
         *
         * @param seen bool (B, past + tokens), false at padding; null if there is none
         * @param window size of the window, 0 for none
         */
        static Sight of(long past, long tokens, @Nullable Tensor seen, long window, Tensor like) {
            long total = past + tokens;
            boolean slides = window > 0 && window < total;
            if (seen == null && !slides) {
                if (tokens == 1) {
                    return ALL;
                }
                if (past == 0) {
                    return CAUSAL;
                }
            }
            Tensor mask = null;
            if (tokens > 1 || slides) {
                Tensor keys = arange(new Scalar(total)).to(like.device(), ScalarType.Long);
                Tensor queries = keys.narrow(0, past, tokens).unsqueeze(1);
                mask = keys.le(queries);
                if (slides) {
                    mask = mask.logical_and(keys.gt(queries.sub(new Scalar(window))));
                }
            }
            if (seen != null) {
                Tensor visible = seen.unsqueeze(1).unsqueeze(1);
                mask = mask == null ? visible : mask.logical_and(visible);
            }
            return new Sight(new TensorOptional(mask), false);
        }

        /**
         * A token sees those of its own text up to itself.
         *
         * @param segments int64 (B, T), the text of each token
         * @param index 0 to T - 1
         */
        static Sight of(Tensor segments, Tensor index, long window) {
            Tensor queries = index.unsqueeze(1);
            Tensor mask = index.le(queries);
            if (window > 0) {
                mask = mask.logical_and(index.gt(queries.sub(new Scalar(window))));
            }
            Tensor same = segments.unsqueeze(2).eq(segments.unsqueeze(1));
            return new Sight(new TensorOptional(same.logical_and(mask).unsqueeze(1)), false);
        }
    }
}
