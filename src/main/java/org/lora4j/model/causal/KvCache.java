package org.lora4j.model.causal;

import java.util.Arrays;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.jspecify.annotations.Nullable;
import org.lora4j.ops.Tensors;

/**
 * Keys and values of the tokens a model has seen, so that a further token costs one token's work.
 *
 * <p>Pass the same cache to successive {@code forward} calls on the same batch. It keeps every token, also in layers with a
 * sliding window, and no gradients. For one thread. Close it to free its memory.
 */
public final class KvCache implements AutoCloseable {
    private final @Nullable Tensor[] keys;
    private final @Nullable Tensor[] values;
    private long capacity;
    private long length;

    /**
     * An empty cache.
     *
     * @param layers number of layers of the model
     * @param capacity tokens to reserve room for; the cache grows beyond by doubling
     * @throws IllegalArgumentException if one of them is less than 1
     */
    public KvCache(int layers, long capacity) {
        if (layers < 1 || capacity < 1) {
            throw new IllegalArgumentException(
                    "layers is " + layers + " and capacity is " + capacity + " but both must be at least 1");
        }
        this.keys = new Tensor[layers];
        this.values = new Tensor[layers];
        this.capacity = capacity;
    }

    /** Number of tokens in the cache. */
    public long length() {
        return length;
    }

    /** Number of layers the cache was made for. */
    public int layers() {
        return keys.length;
    }

    /** Called once for each forward pass, after its last layer. */
    void advance(long tokens) {
        length += tokens;
    }

    /** Makes room for further tokens; called before the first layer of a forward pass. */
    void reserve(long tokens) {
        if (length + tokens > capacity) {
            capacity = Math.max(length + tokens, 2 * capacity);
        }
    }

    /** Adds the keys of one layer, shape (B, heads, T, D), and gives all of them, shape (B, heads, length + T, D). */
    Tensor addKeys(int layer, Tensor k) {
        return add(keys, layer, k);
    }

    /** As {@link #addKeys} for values. */
    Tensor addValues(int layer, Tensor v) {
        return add(values, layer, v);
    }

    private Tensor add(@Nullable Tensor[] store, int layer, Tensor fresh) {
        if (fresh.requires_grad()) {
            throw new IllegalStateException(
                    "a KvCache keeps no gradients: run under NoGradGuard, or call forward without a cache");
        }
        Tensor kept = roomy(store, layer, fresh);
        long tokens = fresh.size(2);
        kept.narrow(2, length, tokens).copy_(fresh);
        return kept.narrow(2, 0, length + tokens);
    }

    private Tensor roomy(@Nullable Tensor[] store, int layer, Tensor fresh) {
        Tensor old = store[layer];
        if (old != null && (old.size(0) != fresh.size(0))) {
            throw new IllegalArgumentException("the cache holds a batch of " + old.size(0) + " rows, but input_ids has "
                    + fresh.size(0) + ": use a new KvCache for another batch");
        }
        if (old != null && old.size(2) >= capacity) {
            return old;
        }
        try (PointerScope scope = new PointerScope()) {
            long[] shape = {fresh.size(0), fresh.size(1), capacity, fresh.size(3)};
            Tensor grown = Tensors.keep(fresh.new_empty(shape));
            if (old != null) {
                grown.narrow(2, 0, length).copy_(old.narrow(2, 0, length));
                old.close();
            }
            store[layer] = grown;
            return grown;
        }
    }

    /** Frees the memory. The cache is empty afterwards and can be used for another batch. */
    @Override
    public void close() {
        for (@Nullable Tensor[] store : Arrays.asList(keys, values)) {
            for (int i = 0; i < store.length; i++) {
                Tensor tensor = store[i];
                if (tensor != null) {
                    tensor.close();
                    store[i] = null;
                }
            }
        }
        length = 0;
    }
}
