package org.lora4j.layer;

import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import org.bytedeco.pytorch.Generator;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.PeftCompat;

/**
 * Which adapters the layers of one model apply: the active ones, or on a thread that serves a mixed batch, one per
 * row. Layers read it on every forward pass.
 */
public final class ActiveAdapters {
    private final Set<PeftCompat> compat;
    private volatile List<String> names = List.of();
    private volatile boolean enabled = true;
    private volatile FusedMode fused = FusedMode.AUTO;
    private final Map<String, Generator> generators = new ConcurrentHashMap<>();
    private volatile @Nullable MergeChoice mergeChoice;
    private final ThreadLocal<@Nullable RowAdapters> rows = new ThreadLocal<>();
    private final ThreadLocal<@Nullable Invocation> invocation = new ThreadLocal<>();
    private final ThreadLocal<@Nullable PooledRows> pooled = new ThreadLocal<>();

    /** With everything as the formulas say. */
    public ActiveAdapters() {
        this(Set.of());
    }

    /** @param compat the defects of PEFT to repeat */
    public ActiveAdapters(Set<PeftCompat> compat) {
        this.compat = Set.copyOf(compat);
    }

    /** Whether to repeat a defect of PEFT. */
    public boolean has(PeftCompat defect) {
        return compat.contains(defect);
    }

    /** The active adapters, in the order in which their updates are added. */
    public List<String> names() {
        return names;
    }

    public void names(List<String> active) {
        names = List.copyOf(active);
    }

    public boolean enabled() {
        return enabled;
    }

    public void enabled(boolean enable) {
        enabled = enable;
    }

    /** How linear layers train. */
    public FusedMode fused() {
        return fused;
    }

    public void fused(FusedMode mode) {
        fused = mode;
    }

    /** Where an adapter's dropout gets its random numbers, or null for LibTorch's default generator. */
    @Nullable
    Generator generator(String adapter) {
        return generators.get(adapter);
    }

    /** Gives an adapter's dropout a generator of its own; null for LibTorch's default one. The caller closes it. */
    public void generator(String adapter, @Nullable Generator generator) {
        if (generator == null) {
            generators.remove(adapter);
        } else {
            generators.put(adapter, generator);
        }
    }

    /** What adapters are merged into where layers are quantized; null while nobody has chosen. */
    public @Nullable MergeChoice mergeChoice() {
        return mergeChoice;
    }

    public void mergeChoice(MergeChoice choice) {
        mergeChoice = choice;
    }

    /** The adapters of the batch this thread is working on, or null if all rows use the active ones. */
    public @Nullable RowAdapters rows() {
        return rows.get();
    }

    public void rows(@Nullable RowAdapters batch) {
        if (batch == null) {
            rows.remove();
        } else {
            rows.set(batch);
        }
    }

    /** Where activated adapters start in the batch this thread is working on, or null if its tokens are not known. */
    public @Nullable Invocation invocation() {
        return invocation.get();
    }

    public void invocation(@Nullable Invocation found) {
        if (found == null) {
            invocation.remove();
        } else {
            invocation.set(found);
        }
    }

    /** The adapters of a pool the rows of this thread's batch use in place of those the layers hold, or null. */
    public @Nullable PooledRows pooled() {
        return pooled.get();
    }

    public void pooled(@Nullable PooledRows batch) {
        if (batch == null) {
            pooled.remove();
        } else {
            pooled.set(batch);
        }
    }
}
