package org.lora4j.model;

import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.Tensor;
import org.lora4j.combine.CombinationType;
import org.lora4j.combine.CombineOptions;
import org.lora4j.combine.LayerReport;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.PeftCompat;
import org.lora4j.layer.ActiveAdapters;
import org.lora4j.layer.Adapter;
import org.lora4j.layer.MergeBase;
import org.lora4j.layer.MergeChoice;
import org.lora4j.layer.MergeReport;
import org.lora4j.layer.RowAdapters;
import org.lora4j.layer.SavedParameter;

/**
 * A model with adapters: adds, loads, switches, merges and saves them. What PEFT calls {@code PeftModel}.
 *
 * <p>The model is used through {@link #base()}. Adding, switching and merging must not run beside a forward pass; forward
 * passes may run on several threads, each with its own {@link #rows}.
 *
 * @param <M> the type of the base model
 */
public final class LoraModel<M extends Module> {
    /** The name that stands for no adapter in {@link #rows}, as in PEFT. */
    public static final String BASE = RowAdapters.BASE;

    private static final String DEFAULT = "default";

    private final M base;
    private final ActiveAdapters active;
    private final Injector injector;
    private final TrainingPaths training;
    private final AdapterFactory factory;
    private final MergedLayers merging;
    private final Invocations invocations;
    private final AttachedAdapters adapters;
    /** What was merged when adapters were disabled, to be merged again with them. */
    private List<String> mergedBeforeDisable = List.of();

    /** Until it is closed, a different state holds. */
    public interface Scope extends AutoCloseable {
        @Override
        void close();
    }

    /** Freezes the base model; no adapter yet. */
    LoraModel(M base, Set<PeftCompat> compat) {
        this.base = base;
        this.active = new ActiveAdapters(compat);
        this.injector = new Injector(base, active);
        this.factory = new AdapterFactory(base, injector);
        this.merging = new MergedLayers(injector);
        this.adapters = new AttachedAdapters(active, injector);
        this.training = new TrainingPaths(active, injector, adapters);
        this.invocations = new Invocations(active, adapters);
        if (base instanceof TokenSource source) {
            source.listener(invocations);
        }
        try (PointerScope scope = new PointerScope()) {
            Parameters.of(base).values().forEach(parameter -> parameter.set_requires_grad(false));
        }
    }

    /** The base model, whose {@code forward} uses the adapters. */
    public M base() {
        return base;
    }

    /** The names of all adapters, in the order they were added. */
    public List<String> adapterNames() {
        return adapters.names();
    }

    /**
     * An adapter by name.
     *
     * @throws IllegalArgumentException if there is none of this name
     */
    public Adapter adapter(String name) {
        return adapters.get(name);
    }

    /**
     * Adds a fresh adapter, trainable once it is active. It is not made active.
     *
     * @throws IllegalArgumentException if the name is taken or the configuration does not fit the model
     */
    public void addAdapter(String name, LoraConfig config) {
        adapters.checkNew(name, config);
        try (PointerScope scope = new PointerScope()) {
            adapters.withoutSaved(() -> adapters.attach(factory.fresh(name, config, null), true));
        }
    }

    /**
     * As {@link #addAdapter(String, LoraConfig)}, for an initialisation that looks at data: {@code eva}, {@code corda} or
     * {@code lora_ga}. The batches run on the base model. With {@code eva} the adapter's configuration gets the ranks found.
     *
     * @param batches run in order, with {@code eva} again and again until the components of all layers are found
     * @throws IllegalArgumentException also if there is no batch, or one does not give what the initialisation needs
     * @throws IllegalStateException if {@code eva} does not find all components
     */
    public void addAdapter(String name, LoraConfig config, Iterable<? extends CalibrationBatch> batches) {
        adapters.checkNew(name, config);
        try (PointerScope scope = new PointerScope()) {
            adapters.withoutSaved(() -> adapters.attach(factory.fresh(name, config, batches), true));
        }
    }

    /**
     * Loads an adapter that PEFT or lora4j wrote, under any name. It is not made active and gets no gradients until
     * {@link #setTrainable} says so.
     *
     * @param folder a folder with adapter_config.json and adapter_model.safetensors
     * @throws IllegalArgumentException if the name is taken, or listing every tensor that does not fit; nothing is added
     * @throws IOException if a file cannot be read or is defective
     */
    public void loadAdapter(Path folder, String name) throws IOException {
        LoraConfig config = AdapterFiles.readConfig(folder);
        adapters.checkNew(name, config);
        try (PointerScope scope = new PointerScope()) {
            adapters.withoutSaved(() -> adapters.attach(factory.loaded(name, config, folder), false));
        }
    }

    /**
     * Replaces an adapter by one in a folder, under the same name and in the same place: it is active, trainable and
     * scaled as configured if the old one was. Ranks, patterns, targets and variants may differ. What PEFT calls {@code
     * hotswap_adapter}.
     *
     * @throws IllegalArgumentException if there is no adapter of this name, or listing every tensor that does not fit;
     *     nothing changes then
     * @throws IllegalStateException if the adapter is merged
     * @throws IOException if a file cannot be read or is defective
     */
    public void hotswap(String name, Path folder) throws IOException {
        Adapter old = adapter(name);
        checkNotMerged(name);
        LoraConfig config = AdapterFiles.readConfig(folder);
        adapters.checkBeside(name, config);
        try (PointerScope scope = new PointerScope()) {
            adapters.withoutSaved(() -> {
                AdapterFactory.Made made = factory.loaded(name, config, folder);
                if (active.has(PeftCompat.HOTSWAP_IGNORES_PATTERNS)) {
                    made.adapter().ignorePatterns();
                }
                injector.inject(made.layers());
                adapters.detach(name);
                old.close();
                adapters.attach(made, old.trainable());
            });
        }
    }

    /**
     * Adds the weighted sum of adapters as a new adapter, exactly, with layers that only some of them have: {@link
     * #addWeightedAdapter(List, List, String, CombineOptions)} of type {@code cat}.
     */
    public void addWeightedAdapter(List<String> names, List<Double> factors, String name) {
        CombineOptions side = CombineOptions.builder(CombinationType.CAT)
                .differentTargets(true)
                .build();
        addWeightedAdapter(names, factors, name, side);
    }

    /**
     * Combines adapters to a new one: PEFT's {@code add_weighted_adapter}. Its scale is 1, it has no dropout, is trainable
     * and not active. Modules saved whole add up as changes of the base's.
     *
     * @param names at least one adapter, each once
     * @param factors a finite weight for each; may be negative
     * @return what became of each layer
     * @throws IllegalArgumentException if names, weights, options or adapters do not fit; nothing is added
     */
    public List<LayerReport> addWeightedAdapter(
            List<String> names, List<Double> factors, String name, CombineOptions options) {
        adapters.checkName(name);
        List<Adapter> sources = names.stream().map(this::adapter).toList();
        WeightedSum sum = new WeightedSum(sources, factors, options, injector);
        try (PointerScope scope = new PointerScope()) {
            adapters.withoutSaved(() -> {
                AdapterFactory.Made made = sum.make(name);
                adapters.checkNew(name, made.adapter().config());
                adapters.attach(made, true);
            });
        }
        return sum.reports();
    }

    /**
     * Makes adapters active, all others inactive. Merged adapters are unmerged first. Trainable adapters get gradients
     * while they are active.
     *
     * @param names in the order in which their updates are added; none for the bare base model
     * @throws IllegalArgumentException if there is none of a name, or two of them keep copies of one parameter
     */
    public void setActive(String... names) {
        Set<String> wanted = new LinkedHashSet<>(Arrays.asList(names));
        adapters.checkTogether(wanted);
        unmergeAdapter();
        active.names(List.copyOf(wanted));
        adapters.apply();
    }

    /** The active adapters, in the order in which their updates are added. */
    public List<String> activeAdapters() {
        return active.names();
    }

    /** Sets whether an adapter gets gradients while it is active. */
    public void setTrainable(String name, boolean trainable) {
        adapter(name).trainable(trainable);
        adapters.apply();
    }

    /** Whether adapters apply at all. */
    public boolean isEnabled() {
        return active.enabled();
    }

    /** Switches all adapters off, until {@link #enable()}: the model computes what the base model does, bit for bit. */
    public void disable() {
        if (active.enabled()) {
            mergedBeforeDisable = mergedAdapters();
            unmergeAdapter();
            active.enabled(false);
            adapters.apply();
        }
    }

    /** Switches the active adapters on again, and merges what was merged before. */
    public void enable() {
        if (!active.enabled()) {
            active.enabled(true);
            adapters.apply();
            merge(mergedBeforeDisable, false, Progress.NONE);
            mergedBeforeDisable = List.of();
        }
    }

    /** Switches all adapters off until the scope is closed; restores what was. */
    public Scope disabled() {
        boolean before = active.enabled();
        disable();
        return () -> {
            if (before) {
                enable();
            }
        };
    }

    /**
     * Gives each row of a batch its own adapter, on this thread, until the scope is closed.
     *
     * @param names for each row of the batches to come an adapter, or {@link #BASE} for none
     * @throws IllegalArgumentException if there is none of a name, or one keeps copies of parameters, which all rows share
     * @throws IllegalStateException if adapters are merged or in parameters, since all rows would get those
     */
    public Scope rows(String... names) {
        for (String name : names) {
            if (!name.equals(BASE) && !adapter(name).saved().isEmpty()) {
                throw new IllegalArgumentException("adapter \"" + name + "\" has copies of "
                        + adapter(name).saved().keySet() + ", which cannot differ by row: activate it alone");
            }
        }
        adapters.checkMixable();
        if (!mergedAdapters().isEmpty()) {
            throw new IllegalStateException(mergedAdapters()
                    + " are merged into the weights, which all rows share: call unmergeAdapter() first");
        }
        RowAdapters before = active.rows();
        active.rows(new RowAdapters(List.of(names)));
        return () -> active.rows(before);
    }

    /**
     * Tells the activated adapters (aLoRA), which start at the last occurrence of their {@code alora_invocation_tokens},
     * where that is, on this thread, until the scope is closed: around a forward pass, or around a prompt's pass and those
     * over the tokens generated after it. Where the tokens are missing, the adapter does not apply. A {@code CausalLM} does this itself.
     *
     * @param inputIds int64 (B, T): the tokens of the rows; negative at padding
     * @throws IllegalArgumentException if the ids have another shape or type
     */
    public Scope invocation(Tensor inputIds) {
        return invocations.open(inputIds);
    }

    /**
     * Deletes an adapter and frees its tensors. If it was the only active one, the first of the others by name becomes
     * active, as in PEFT.
     *
     * @throws IllegalStateException if it is merged
     */
    public void deleteAdapter(String name) {
        Adapter deleted = adapter(name);
        checkNotMerged(name);
        List<String> left = new ArrayList<>(active.names());
        left.remove(name);
        adapters.delete(name);
        if (left.isEmpty() && active.names().contains(name) && !adapters.names().isEmpty()) {
            left.add(new TreeSet<>(adapters.names()).first());
        }
        active.names(left);
        deleted.close();
        adapters.apply();
    }

    /**
     * Merges adapters into the weights, rounding once, beside those merged already. Their forward pass costs nothing then.
     *
     * @param names none for the active ones
     */
    public void mergeAdapter(String... names) {
        merge(names.length == 0 ? active.names() : List.of(names), false, Progress.NONE);
    }

    /** As {@link #mergeAdapter(String...)}, but refuses weights that are not finite. */
    public void mergeAdapter(boolean safe, Progress progress, String... names) {
        merge(names.length == 0 ? active.names() : List.of(names), safe, progress);
    }

    /**
     * Chooses what adapters are merged into where layers are quantized; there is no default, since each choice loses
     * something: see {@link MergeBase}. Holds for merges to come; adapters that are merged stay as they are.
     *
     * @throws IllegalArgumentException for ORIGINAL, which needs the weights: use {@link #mergeInto(MergeChoice)}
     */
    public void mergeInto(MergeBase base) {
        mergeInto(MergeChoice.of(base));
    }

    /** As {@link #mergeInto(MergeBase)}, with the weights that were quantized. */
    public void mergeInto(MergeChoice choice) {
        active.mergeChoice(choice);
    }

    /** For each quantized layer that adapters were merged into, how large the errors are beside what they add; by path. */
    public Map<String, MergeReport> mergeReports() {
        return merging.reports();
    }

    /** Takes all merged adapters out of the weights, which are then what they were, bit for bit. */
    public void unmergeAdapter() {
        merging.unmerge();
    }

    /** The adapters now part of the weights of some layer. */
    public List<String> mergedAdapters() {
        return merging.merged();
    }

    /** Removes all adapters and gives the base model back as it was. This object is of no use afterwards. */
    public M unload() {
        unmergeAdapter();
        adapters.deactivateSaved();
        remove();
        injector.restoreLayers();
        return base;
    }

    /** Merges the active adapters for good and removes all; see {@link #mergeAndUnload(boolean, Progress)}. */
    public M mergeAndUnload() {
        return mergeAndUnload(false, Progress.NONE);
    }

    /**
     * Merges the active adapters into the weights for good, with their saved modules and biases, removes all adapters and
     * gives the base model back. Layers repeated by {@code layer_replication} stay, each with its own merged weights. This
     * object is of no use afterwards.
     *
     * @param safe whether to refuse weights that are not finite; nothing is merged then
     * @param progress told of each layer
     * @throws ArithmeticException naming the layer, if {@code safe} and a weight would not be finite
     */
    public M mergeAndUnload(boolean safe, Progress progress) {
        merge(active.names(), safe, progress);
        merging.keep();
        for (String name : active.names()) {
            adapter(name).saved().values().forEach(SavedParameter::keepActive);
        }
        remove();
        return base;
    }

    /** The tensors to train: factors, and copies of parameters, of the active trainable adapters. */
    public List<Tensor> trainableParameters() {
        List<Tensor> parameters = new ArrayList<>();
        if (active.enabled()) {
            for (String name : active.names()) {
                Adapter adapter = adapter(name);
                if (adapter.trainable()) {
                    parameters.addAll(adapter.parameters());
                }
            }
        }
        return parameters;
    }

    /** How linear layers train, and which way each took. */
    public TrainingPaths training() {
        return training;
    }

    /**
     * Brings the parameters that {@code target_parameters} adapts in line with their adapters: to be called after each step of
     * an optimizer, and whenever factors were changed from outside. {@code Trainer} calls it. Without such parameters it does
     * nothing.
     */
    public void refresh() {
        adapters.refresh();
    }

    /** PEFT's line: {@code trainable params: 1,234 || all params: 56,789 || trainable%: 2.1730}. */
    public String trainableSummary() {
        return Status.summary(modelStatus());
    }

    /** The state of every adapted layer. */
    public List<LayerStatus> layerStatus() {
        return Status.layers(injector.paths(), injector.injected().values(), adapters.values(), active);
    }

    /** The state of the model. */
    public ModelStatus modelStatus() {
        long trainable = trainableParameters().stream().mapToLong(Tensor::numel).sum();
        try (PointerScope scope = new PointerScope()) {
            long total = Parameters.count(base);
            for (Adapter adapter : adapters.values()) {
                total += Status.size(adapter, active);
            }
            return Status.model(
                    base.getClass().getSimpleName(), adapters.names(), active, trainable, total, layerStatus());
        }
    }

    /**
     * Saves all adapters as PEFT does: "default" into the folder itself, others into folders of their names.
     *
     * @throws IOException if a file cannot be written
     */
    public void save(Path folder) throws IOException {
        for (String name : adapters.names()) {
            save(name.equals(DEFAULT) ? folder : folder.resolve(name), name);
        }
    }

    /**
     * Saves one adapter into a folder, in PEFT's format.
     *
     * @throws IOException if a file cannot be written
     */
    public void save(Path folder, String name) throws IOException {
        AdapterFiles.write(folder, adapter(name), injector.injected());
    }

    /**
     * Saves an adapter that started with a part of the base weight (pissa, olora, corda, lora_ga) as one for the untouched
     * base, of twice the rank: PEFT's {@code save_pretrained} with {@code path_initial_model_for_weight_conversion}.
     *
     * @throws IllegalArgumentException if the adapter did not start so, or not exactly, as with loftq
     * @throws IOException if a file cannot be written
     */
    public void saveConverted(Path folder, String name) throws IOException {
        AdapterFiles.writeConverted(folder, adapter(name), injector.injected());
    }

    private void checkNotMerged(String name) {
        if (mergedAdapters().contains(name)) {
            throw new IllegalStateException("adapter \"" + name + "\" is merged: call unmergeAdapter() first");
        }
    }

    private void merge(List<String> names, boolean safe, Progress progress) {
        names.forEach(this::adapter);
        merging.merge(names, safe, progress);
    }

    private void remove() {
        if (base instanceof TokenSource source) {
            source.listener(null);
        }
        injector.removeAll();
        adapters.close();
        active.names(List.of());
    }
}
