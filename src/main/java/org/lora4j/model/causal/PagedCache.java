package org.lora4j.model.causal;

import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.ops.Tensors;

/**
 * A pool of pages for the keys and values of many sequences, of which each has as many pages as its tokens need. Who has
 * which page is up to the caller; see {@link CausalLM#forward(PagedBatch, PagedCache)}. For one thread.
 */
public final class PagedCache implements AutoCloseable {
    private final int pages;
    private final int pageTokens;
    private final Tensor[] keys;
    private final Tensor[] values;

    /**
     * Reserves the memory, which does not grow.
     *
     * @param pages number of pages, at least 1
     * @param pageTokens tokens of a page, at least 1
     */
    public PagedCache(CausalLM model, int pages, int pageTokens) {
        CausalConfig config = model.config();
        CausalConfig.require(pages >= 1, "pages", pages, "at least 1");
        CausalConfig.require(pageTokens >= 1, "pageTokens", pageTokens, "at least 1");
        this.pages = pages;
        this.pageTokens = pageTokens;
        this.keys = new Tensor[config.layers()];
        this.values = new Tensor[config.layers()];
        long[] shape = {(long) pages * pageTokens, config.keyWidth()};
        ScalarType type = model.dtype();
        try (PointerScope scope = new PointerScope()) {
            for (int layer = 0; layer < keys.length; layer++) {
                keys[layer] = empty(model, shape, type);
                values[layer] = empty(model, shape, type);
            }
        }
    }

    private static Tensor empty(CausalLM model, long[] shape, ScalarType type) {
        return Tensors.keep(torch.empty(shape, new TensorOptions(type), null).to(model.device(), type));
    }

    /** The memory of one page in all layers. */
    public static long pageBytes(CausalLM model, int pageTokens) {
        CausalConfig config = model.config();
        int width = model.dtype() == ScalarType.Double ? 8 : model.dtype() == ScalarType.Float ? 4 : 2;
        return 2L * config.layers() * config.keyWidth() * pageTokens * width;
    }

    public int pages() {
        return pages;
    }

    public int pageTokens() {
        return pageTokens;
    }

    Tensor keys(int layer) {
        return keys[layer];
    }

    Tensor values(int layer) {
        return values[layer];
    }

    @Override
    public void close() {
        for (int layer = 0; layer < keys.length; layer++) {
            keys[layer].close();
            values[layer].close();
        }
    }
}
