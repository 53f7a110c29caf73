package org.lora4j.model.causal;

import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.ops.Ops;
import org.lora4j.ops.Paging;

/**
 * What the layers share in a pass over a {@link PagedBatch}, in which every token is a row of its own. A row's result has the
 * same bits whatever rows are beside it, as long as the linear layers' have.
 */
final class PagedPass {
    /** LibTorch divides the work on fewer elements than this among no threads. */
    private static final long GRAIN = 32768;

    /** Elements LibTorch computes at once; the rest of a call goes through other code, whose last bit may differ. */
    private static final long VECTOR = 64;

    private final PagedCache cache;
    private final Paging full;
    private final Paging sliding;
    private final Tensor slots;

    PagedPass(CausalConfig config, PagedBatch batch, PagedCache cache, Tensor like) {
        this.cache = cache;
        int width = batch.width();
        this.full = new Paging(
                config.heads(),
                config.kvHeads(),
                cache.pageTokens(),
                0,
                batch.sequences(),
                batch.positions(),
                batch.table(width),
                width);
        this.sliding = config.slidingWindow() == 0 ? full : full.withWindow(config.slidingWindow());
        long[] places = new long[batch.tokens().length];
        for (int t = 0; t < places.length; t++) {
            places[t] = full.slot(t);
        }
        this.slots = Tensor.create(places).to(like.device(), ScalarType.Long);
    }

    /**
     * Adds the tokens' keys and values to the cache and attends.
     *
     * @param q (N, heads * D), k and v (N, kvHeads * D)
     * @return (N, heads * D)
     */
    Tensor attend(int layer, boolean slides, Tensor q, Tensor k, Tensor v) {
        cache.keys(layer).index_copy_(0, slots, k);
        cache.values(layer).index_copy_(0, slots, v);
        Tensor query = q.contiguous();
        Tensor out = torch.empty_like(query);
        Ops.current().attention(out, query, cache.keys(layer), cache.values(layer), slides ? sliding : full);
        return out;
    }

    /** An activation whose bits do not depend on the number of rows: it never ends or is divided within a vector. */
    static Tensor activate(Activation activation, Tensor x) {
        long width = x.size(-1);
        long rows = x.numel() / width;
        long most = width % VECTOR == 0 ? Math.max(1, (GRAIN - 1) / width) : 1;
        if (rows <= most || x.is_cuda()) {
            return activation.apply(x);
        }
        Tensor flat = x.reshape(rows, width);
        TensorVector parts = new TensorVector();
        for (long at = 0; at < rows; at += most) {
            parts.push_back(activation.apply(flat.narrow(0, at, Math.min(most, rows - at))));
        }
        return torch.cat(parts, 0).view_as(x);
    }
}
