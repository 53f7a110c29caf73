package org.lora4j.layer;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.bytedeco.pytorch.GradMode;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.jspecify.annotations.Nullable;
import org.lora4j.ops.LowRank;
import org.lora4j.ops.Ops;
import org.lora4j.ops.Tensors;

/** The adapters of one layer: adds their updates to outputs, merges them into the weight and takes them out again. */
public final class LayerAdapters {
    private final String path;
    private final ActiveAdapters active;
    private final Map<String, LoraWeights> weights = new LinkedHashMap<>();
    private final List<String> merged = new ArrayList<>();
    /** The weight as it was before anything was merged; null while nothing is. */
    private @Nullable Tensor unmerged;

    LayerAdapters(String path, ActiveAdapters active) {
        this.path = path;
        this.active = active;
    }

    String path() {
        return path;
    }

    /** The names of the adapters this layer has, in the order they were added. */
    public Set<String> names() {
        return Set.copyOf(weights.keySet());
    }

    public boolean has(String adapter) {
        return weights.containsKey(adapter);
    }

    /** @throws IllegalArgumentException if this layer has no such adapter */
    public LoraWeights get(String adapter) {
        LoraWeights found = weights.get(adapter);
        if (found == null) {
            throw new IllegalArgumentException("layer '" + path + "' has no adapter '" + adapter + "', only "
                    + weights.keySet() + ": add or load it first");
        }
        return found;
    }

    /** The adapters now part of the weight, in the order they were merged. */
    public List<String> merged() {
        return List.copyOf(merged);
    }

    public void add(String adapter, LoraWeights added) {
        weights.put(adapter, added);
    }

    /** Forgets an adapter; its weights belong to the caller again. */
    public void remove(String adapter) {
        weights.remove(adapter);
    }

    /**
     * The output of the layer: the base output plus the updates of the adapters in use.
     *
     * @param x the module's input
     * @param y the base module's output, which may be changed in place
     */
    Tensor forward(LoraLayer layer, Tensor x, Tensor y) {
        if (weights.isEmpty() || !active.enabled()) {
            return y;
        }
        RowAdapters rows = active.rows();
        if (rows != null) {
            rows.checkBatch(path, x.size(0));
            return rows.distinct().stream().anyMatch(weights::containsKey) ? mixed(layer, x, y, rows) : y;
        }
        List<LoraWeights> inUse = new ArrayList<>();
        for (String name : active.names()) {
            LoraWeights found = weights.get(name);
            if (found != null && !merged.contains(name)) {
                inUse.add(found);
            }
        }
        if (inUse.isEmpty()) {
            return y;
        }
        if (inUse.size() == 1 && inPlace(layer, x, y, inUse)) {
            List<LowRank> table = List.of(inUse.get(0).lowRank());
            update(x, y, new int[(int) (y.numel() / y.size(-1))], table);
            return y;
        }
        torch.ScalarType type = Tensors.type(y);
        for (LoraWeights each : inUse) {
            y = y.add(layer.delta(each, input(layer, each, x)), each.scaleScalar());
        }
        return y.to(type);
    }

    private Tensor mixed(LoraLayer layer, Tensor x, Tensor y, RowAdapters rows) {
        List<LoraWeights> inUse = rows.distinct().stream()
                .filter(weights::containsKey)
                .map(this::get)
                .toList();
        if (inPlace(layer, x, y, inUse)) {
            List<LowRank> table = new ArrayList<>();
            int perRow = (int) (y.numel() / y.size(-1) / x.size(0));
            int[] index = rows.index(weights, perRow, table);
            update(x, y, index, table);
            return y;
        }
        torch.ScalarType type = Tensors.type(y);
        for (String name : rows.distinct()) {
            LoraWeights each = weights.get(name);
            if (each == null) {
                continue;
            }
            Tensor at = torch.tensor(rows.rowsOf(name)).to(y.device(), torch.ScalarType.Long);
            Tensor delta = layer.delta(each, input(layer, each, x.index_select(0, at)));
            Tensor added = y.index_select(0, at).add(delta, each.scaleScalar());
            y = y.index_copy(0, at, added.to(type));
        }
        return y;
    }

    /** Whether the output may be updated in place by the native operation, which records no gradients. */
    private boolean inPlace(LoraLayer layer, Tensor x, Tensor y, List<LoraWeights> inUse) {
        if (!layer.isMatrix()
                || !y.is_contiguous()
                || y.numel() == 0
                || Tensors.type(y) == torch.ScalarType.Double
                || Tensors.type(x) == torch.ScalarType.Double) {
            return false;
        }
        boolean grad = GradMode.is_enabled() && (x.requires_grad() || y.requires_grad());
        for (LoraWeights each : inUse) {
            grad |= GradMode.is_enabled()
                    && (each.a().requires_grad() || each.b().requires_grad());
            if (drops(layer, each)) {
                return false;
            }
        }
        return !grad;
    }

    private static void update(Tensor x, Tensor y, int[] index, List<LowRank> table) {
        Ops.current().lowRankUpdate(y.view(-1, y.size(-1)), x.reshape(-1, x.size(-1)), index, table);
    }

    private static boolean drops(LoraLayer layer, LoraWeights weights) {
        return weights.dropout() > 0 && layer.original().is_training();
    }

    private static Tensor input(LoraLayer layer, LoraWeights weights, Tensor x) {
        if (!x.is_floating_point()) {
            return x;
        }
        Tensor typed = x.to(Tensors.type(weights.a()));
        return drops(layer, weights) ? torch.dropout(typed, weights.dropout(), true) : typed;
    }

    /** See {@link LoraLayer#merge}. */
    void merge(LoraLayer layer, List<String> names, boolean safe) {
        List<String> wanted = names.stream().filter(weights::containsKey).toList();
        if (wanted.equals(merged)) {
            return;
        }
        if (wanted.isEmpty()) {
            unmerge(layer);
            return;
        }
        try (NoGradGuard noGrad = new NoGradGuard()) {
            Tensor weight = layer.weight();
            Tensor original = unmerged == null ? Tensors.keep(weight.detach()) : unmerged;
            Tensor result = original.contiguous().clone();
            Ops.current()
                    .merge(
                            layer.matrix(result),
                            wanted.stream().map(name -> get(name).lowRank()).toList());
            if (safe && !torch.isfinite(result).all().item_bool()) {
                throw new ArithmeticException("merging " + wanted + " into layer '" + path
                        + "' gives NaN or infinite weights: the adapter seems broken; check its values and scale");
            }
            weight.set_data(result);
            unmerged = original;
            merged.clear();
            merged.addAll(wanted);
        }
    }

    /** See {@link LoraLayer#unmerge}. */
    void unmerge(LoraLayer layer) {
        if (unmerged != null) {
            layer.weight().set_data(unmerged);
            keepMerged();
        }
    }

    /** See {@link LoraLayer#keepMerged}. */
    void keepMerged() {
        if (unmerged != null) {
            unmerged.close();
            unmerged = null;
        }
        merged.clear();
    }
}
