package org.lora4j.layer;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.function.Consumer;
import org.bytedeco.pytorch.Generator;
import org.bytedeco.pytorch.GradMode;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.PeftCompat;
import org.lora4j.ops.LowRank;
import org.lora4j.ops.Ops;
import org.lora4j.ops.Tensors;

/** The adapters of one layer: adds their updates to outputs, merges them into the weight and takes them out again. */
public final class LayerAdapters {
    private static final Scalar ONE = Tensors.keep(new Scalar(1));

    private final String path;
    private final ActiveAdapters active;
    private final PathTaken taken;
    private final Reach reach;
    private final Map<String, LoraWeights> weights = new LinkedHashMap<>();
    private final Map<String, TokenRows> tokens = new LinkedHashMap<>();
    private final List<String> merged = new ArrayList<>();
    /** The weight as it was before anything was merged; null while nothing is. */
    private @Nullable Tensor unmerged;
    /** Likewise the bias, if a merged adapter changes it. */
    private @Nullable Tensor unmergedBias;
    /** The base's weight if it is quantized, once it was asked for. */
    private @Nullable QuantizedBase quantized;

    /** Sees the inputs of the layer while an initialisation collects statistics; null otherwise. */
    private volatile @Nullable Consumer<Tensor> probe;

    LayerAdapters(String path, ActiveAdapters active) {
        this.path = path;
        this.active = active;
        this.taken = new PathTaken(path, active);
        this.reach = new Reach(path, active);
    }

    String path() {
        return path;
    }

    ActiveAdapters active() {
        return active;
    }

    /** Whether the rows of this thread's batch use adapters of a pool. */
    boolean isPooled() {
        return active.pooled() != null;
    }

    /** Whether a convolution's A forgets padding mode and dilation, as in PEFT. */
    boolean ignoresOptions() {
        return active.has(PeftCompat.CONVOLUTION_IGNORES_OPTIONS);
    }

    /** The names of the adapters that have factors here, in the order they were added. */
    public Set<String> names() {
        return Set.copyOf(weights.keySet());
    }

    /** Whether an adapter has factors or rows here. */
    public boolean has(String adapter) {
        return weights.containsKey(adapter) || tokens.containsKey(adapter);
    }

    /** Whether all that is merged here are the weights of another layer, transposed; false if nothing is. */
    public boolean mergedFollowing() {
        return !merged.isEmpty()
                && merged.stream()
                                .flatMap(name -> named(name).stream())
                                .filter(LoraWeights::isFollowing)
                                .count()
                        == merged.size();
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

    /** Shows every input of the layer to a consumer, on the thread of the forward pass; null for none. */
    public void probe(@Nullable Consumer<Tensor> consumer) {
        probe = consumer;
    }

    /** The adapters now part of the weight, in the order they were merged. */
    public List<String> merged() {
        return List.copyOf(merged);
    }

    public void add(String adapter, LoraWeights added) {
        weights.put(adapter, added);
    }

    /** Adds the rows of the weight that an adapter replaces. */
    public void add(String adapter, TokenRows rows) {
        tokens.put(adapter, rows);
    }

    /** Forgets an adapter; its weights belong to the caller again. */
    public void remove(String adapter) {
        weights.remove(adapter);
        tokens.remove(adapter);
    }

    /** @throws IllegalArgumentException if two of the adapters replace the same row */
    public void checkRows(List<String> names) {
        List<String> replacing = names.stream().filter(tokens::containsKey).toList();
        for (int i = 0; i < replacing.size(); i++) {
            for (int j = i + 1; j < replacing.size(); j++) {
                if (rowsOf(replacing.get(i)).overlaps(rowsOf(replacing.get(j)))) {
                    throw new IllegalArgumentException("adapters \"" + replacing.get(i) + "\" and \"" + replacing.get(j)
                            + "\" both replace some row of '" + path
                            + "': activate one of them at a time, or train them on different tokens");
                }
            }
        }
    }

    /** The rows of the weight that an adapter replaces, or null. */
    public @Nullable TokenRows rows(String adapter) {
        return tokens.get(adapter);
    }

    private TokenRows rowsOf(String adapter) {
        return Objects.requireNonNull(tokens.get(adapter));
    }

    /**
     * The output of the layer: the base output plus the updates of the adapters in use.
     *
     * @param x the module's input
     * @param y the base module's output, which may be changed in place
     */
    Tensor forward(LoraLayer layer, Tensor x, Tensor y) {
        Consumer<Tensor> watching = probe;
        if (watching != null) {
            watching.accept(x);
        }
        PooledRows pooled = active.pooled();
        if (pooled != null) {
            return pooled.apply(layer, x, y);
        }
        if ((weights.isEmpty() && tokens.isEmpty()) || !active.enabled()) {
            return y;
        }
        RowAdapters rows = active.rows();
        if (rows != null) {
            rows.checkBatch(path, x.size(0));
            return rows.distinct().stream().anyMatch(this::has) ? mixed(layer, x, y, rows) : y;
        }
        for (String name : tokens.isEmpty() ? List.<String>of() : active.names()) {
            TokenRows found = tokens.get(name);
            if (found != null && !merged.contains(name)) {
                y = found.replace(layer, x, y);
            }
        }
        List<LoraWeights> inUse = inUse();
        if (inUse.isEmpty()) {
            return y;
        }
        if (inUse.size() == 1 && inPlace(layer, x, y, inUse)) {
            List<LowRank> table = List.of(inUse.get(0).lowRank());
            update(x, y, reach.among(inUse, y, new int[(int) (y.numel() / y.size(-1))]), table);
            return y;
        }
        taken.noteOther(layer, inUse);
        torch.ScalarType type = Tensors.type(y);
        for (LoraWeights each : inUse) {
            y = reach.where(each, x, y, null, (in, out) -> updated(layer, each, in, out));
        }
        for (LoraWeights each : inUse) {
            if (each.bias() != null) {
                y = reach.where(each, x, y, null, (in, out) -> biased(layer, each, out));
            }
        }
        return y.to(type);
    }

    /** The active adapters of this layer that are not part of the weight, for batches in which all rows use the same. */
    List<LoraWeights> inUse() {
        List<LoraWeights> inUse = new ArrayList<>();
        boolean dropped = !merged.isEmpty() && active.has(PeftCompat.PARTIAL_MERGE_DROPS_OTHERS);
        if (active.enabled() && !dropped) {
            for (String name : active.names()) {
                if (!merged.contains(name)) {
                    inUse.addAll(named(name));
                }
            }
        }
        return inUse;
    }

    /** The adapters in use here, or those of any row where rows have their own. */
    List<LoraWeights> inUseOrMixed() {
        RowAdapters rows = rows();
        return rows == null
                ? inUse()
                : rows.distinct().stream()
                        .filter(weights::containsKey)
                        .map(this::get)
                        .toList();
    }

    /** Which adapters which of the consecutive vectors of a batch get. */
    List<FusedLinear.Segment> segments(List<LoraWeights> inUse, long batch, long vectors) {
        RowAdapters rows = rows();
        if (rows != null) {
            rows.checkBatch(path, batch);
            return rows.segments(weights, vectors / batch);
        }
        return List.of(
                new FusedLinear.Segment(inUse, inUse.stream().map(this::nameOf).toList(), 0, vectors));
    }

    boolean isProbed() {
        return probe != null;
    }

    boolean hasTokenRows() {
        return !tokens.isEmpty();
    }

    PathTaken taken() {
        return taken;
    }

    /** Which way the layer took in its last pass with gradients. */
    public TrainingPath trainingPath() {
        return taken.last();
    }

    /** An adapter of this layer, or nothing if it has none of the name. */
    List<LoraWeights> named(String name) {
        LoraWeights found = weights.get(name);
        return found == null ? List.of() : List.of(found);
    }

    /** The adapters of the rows of this thread's batch, or null if all use the active ones. */
    @Nullable
    RowAdapters rows() {
        return active.enabled() ? active.rows() : null;
    }

    boolean has(PeftCompat defect) {
        return active.has(defect);
    }

    /** After all updates, since DoRA rescales no bias, as in a merged weight. */
    private static Tensor biased(LoraLayer layer, LoraWeights weights, Tensor y) {
        Tensor bias = weights.bias();
        return bias == null ? y : y.add(layer.perOutput(bias), weights.scaleScalar());
    }

    /** An output with one more adapter's update, in the wider type of the two. */
    private Tensor updated(LoraLayer layer, LoraWeights weights, Tensor x, Tensor y) {
        boolean drops = drops(layer, weights) && x.is_floating_point();
        Tensor typed = x.is_floating_point() ? x.to(Tensors.type(weights.a())) : x;
        Tensor input = drops ? dropped(weights, typed) : typed;
        Tensor delta = layer.delta(weights, input);
        if (weights.magnitude() == null) {
            return y.add(delta, weights.scaleScalar());
        }
        // The base part without its bias, of the same input as the update: of the dropped one where dropout is on.
        Tensor part = drops ? layer.base(input.to(Tensors.type(layer.weight()))) : y;
        Tensor bias = layer.bias();
        if (bias != null && bias.defined()) {
            part = part.sub(layer.perOutput(bias));
        }
        Tensor rescale = layer.perOutput(Merging.rescale(layer.matrix(unmergedWeight(layer)), weights));
        return y.add(part.mul(rescale.sub(ONE))).add(delta.mul(rescale), weights.scaleScalar());
    }

    private Tensor dropped(LoraWeights adapter, Tensor x) {
        Generator own = active.generator(nameOf(adapter));
        return own == null
                ? torch.dropout(x, adapter.dropout(), true)
                : x.mul(new Dropout.Masks(own, adapter.dropout()).next(x.detach()));
    }

    private String nameOf(LoraWeights adapter) {
        return weights.entrySet().stream()
                .filter(each -> each.getValue() == adapter)
                .map(Map.Entry::getKey)
                .findFirst()
                .orElseThrow();
    }

    private Tensor mixed(LoraLayer layer, Tensor x, Tensor y, RowAdapters rows) {
        for (String name : tokens.isEmpty() ? List.<String>of() : rows.distinct()) {
            TokenRows found = tokens.get(name);
            if (found != null) {
                y = Reach.changed(rows.rowsOf(name), x, y, (in, out) -> found.replace(layer, in, out));
            }
        }
        List<LoraWeights> inUse = rows.distinct().stream()
                .filter(weights::containsKey)
                .map(this::get)
                .toList();
        if (!active.has(PeftCompat.ROWS_ROUND_TWICE) && inPlace(layer, x, y, inUse)) {
            List<LowRank> table = new ArrayList<>();
            int perRow = (int) (y.numel() / y.size(-1) / x.size(0));
            int[] index = rows.index(weights, perRow, table);
            update(x, y, reach.among(inUse, y, index), table);
            return y;
        }
        torch.ScalarType type = Tensors.type(y);
        for (String name : rows.distinct()) {
            LoraWeights each = weights.get(name);
            if (each == null) {
                continue;
            }
            boolean twice = active.has(PeftCompat.ROWS_ROUND_TWICE)
                    && each.invocationTokens().isEmpty();
            Reach.Change change = (in, before) -> {
                Tensor wide = twice ? before.to(Tensors.type(each.a())) : before;
                Tensor after = biased(layer, each, updated(layer, each, in, wide));
                return twice ? before.add(after.sub(before).to(type)) : after.to(type);
            };
            y = reach.where(each, x, y, rows.rowsOf(name), change);
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
            if (drops(layer, each) || !each.isPlain()) {
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

    /** The weight without any merged adapter; of a quantized layer what it stands for. */
    public Tensor unmergedWeight(LoraLayer layer) {
        QuantizedBase base = quantized(layer);
        if (base != null) {
            return base.unmerged();
        }
        return unmerged == null ? layer.weight() : unmerged;
    }

    /** The quantized weight under the layer, or null. */
    private @Nullable QuantizedBase quantized(LoraLayer layer) {
        if (quantized == null) {
            quantized = QuantizedBase.of(layer);
        }
        return quantized;
    }

    /** How large the errors of the last merge into a quantized weight are, or null if there was none. */
    public @Nullable MergeReport mergeReport() {
        return quantized == null ? null : quantized.report();
    }

    /** See {@link LoraLayer#merge}. */
    void merge(LoraLayer layer, List<String> names, boolean safe) {
        List<String> wanted = names.stream().filter(this::has).toList();
        if (wanted.equals(merged)) {
            return;
        }
        if (wanted.isEmpty()) {
            unmerge(layer);
            return;
        }
        try (NoGradGuard noGrad = new NoGradGuard()) {
            List<LoraWeights> adapters =
                    wanted.stream().filter(weights::containsKey).map(this::get).toList();
            for (LoraWeights each : adapters) {
                if (!each.invocationTokens().isEmpty()) {
                    throw new IllegalStateException("cannot merge " + wanted + " into layer '" + path
                            + "': an adapter applies from its invocation tokens " + each.invocationTokens()
                            + " on, and a weight is the same for all tokens; keep it unmerged");
                }
            }
            boolean changesBias = adapters.stream().anyMatch(each -> each.bias() != null);
            Tensor bias = layer.bias();
            if (changesBias && (bias == null || !bias.defined())) {
                throw new IllegalStateException("cannot merge " + wanted + " into layer '" + path
                        + "': an adapter has a bias on B and the base layer has none to add it to; keep it unmerged");
            }
            QuantizedBase base = quantized(layer);
            Tensor original = base != null ? base.start() : unmerged;
            if (original == null) {
                original = Tensors.keep(layer.weight().detach());
            }
            Tensor originalBias = unmergedBias;
            Tensor replaced = original;
            for (String name : wanted) {
                if (tokens.containsKey(name)) {
                    replaced = replaced == original ? original.clone() : replaced;
                    rowsOf(name).writeTo(replaced);
                }
            }
            Tensor result = Merging.weight(layer, replaced, adapters, active, safe);
            Tensor resultBias = null;
            if (bias != null && (changesBias || originalBias != null)) {
                originalBias = originalBias == null ? Tensors.keep(bias.detach()) : originalBias;
                resultBias = Merging.bias(originalBias, adapters);
            }
            if (result == null || safe && resultBias != null && !Merging.isFinite(resultBias)) {
                throw new ArithmeticException("merging " + wanted + " into layer '" + path
                        + "' gives NaN or infinite weights: the adapter seems broken; check its values and scale");
            }
            if (base == null) {
                layer.weight().set_data(result);
                unmerged = original;
            } else {
                base.put(result, adapters);
            }
            if (bias != null && resultBias != null) {
                bias.set_data(resultBias);
            }
            unmergedBias = originalBias;
            merged.clear();
            merged.addAll(wanted);
        }
    }

    /** See {@link LoraLayer#unmerge}. */
    void unmerge(LoraLayer layer) {
        if (unmerged != null) {
            layer.weight().set_data(unmerged);
        }
        if (quantized != null) {
            quantized.undo();
        }
        if (unmergedBias != null) {
            Objects.requireNonNull(layer.bias()).set_data(unmergedBias);
        }
        forgetUnmerged();
    }

    /** See {@link LoraLayer#keepMerged}. */
    void keepMerged() {
        if (quantized != null) {
            quantized.keep();
        }
        forgetUnmerged();
    }

    private void forgetUnmerged() {
        if (unmerged != null) {
            unmerged.close();
            unmerged = null;
        }
        if (unmergedBias != null) {
            unmergedBias.close();
            unmergedBias = null;
        }
        merged.clear();
    }
}
