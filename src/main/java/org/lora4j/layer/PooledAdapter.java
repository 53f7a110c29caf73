package org.lora4j.layer;

import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Set;
import org.jspecify.annotations.Nullable;
import org.lora4j.ops.LowRank;
import org.lora4j.ops.LowRankTable;

/**
 * An adapter that no layer knows: its updates by layer path, to be lent to the rows of batches through
 * {@link PooledRows}. Its factors have the ranks they have, without padding.
 */
public final class PooledAdapter implements AutoCloseable {
    private final Map<String, LowRankTable> tables;
    private final AutoCloseable memory;
    private final long bytes;

    /**
     * @param updates by the path of the layer, such as {@code model.layers.0.self_attn.q_proj}: A (r, in) and B (out, r) on
     *     the model's device, with the scale the configuration gives there
     * @param memory frees the factors; closed by {@link #close}
     * @param bytes how much memory the factors take
     */
    public PooledAdapter(Map<String, LowRank> updates, AutoCloseable memory, long bytes) {
        Map<String, LowRankTable> described = new LinkedHashMap<>();
        updates.forEach((path, update) -> described.put(path, LowRankTable.of(update)));
        this.tables = described;
        this.memory = memory;
        this.bytes = bytes;
    }

    /** The layers it has updates for. */
    public Set<String> paths() {
        return tables.keySet();
    }

    /** Its update at a layer, as a table of one; null if it has none there. */
    public @Nullable LowRankTable at(String path) {
        return tables.get(path);
    }

    /** How much memory its factors take. */
    public long bytes() {
        return bytes;
    }

    /** Frees the factors; no batch may use them any more. */
    @Override
    public void close() {
        try {
            memory.close();
        } catch (Exception e) {
            throw new IllegalStateException("the memory of an adapter could not be freed", e);
        }
    }
}
