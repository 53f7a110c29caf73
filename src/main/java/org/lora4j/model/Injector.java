package org.lora4j.model;

import java.util.ArrayList;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.function.Predicate;
import java.util.function.Supplier;
import org.bytedeco.pytorch.Conv1dImpl;
import org.bytedeco.pytorch.Conv2dImpl;
import org.bytedeco.pytorch.Conv3dImpl;
import org.bytedeco.pytorch.EmbeddingImpl;
import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.MultiheadAttentionImpl;
import org.bytedeco.pytorch.Tensor;
import org.lora4j.config.BiasMode;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.ModuleSelector;
import org.lora4j.config.PeftCompat;
import org.lora4j.layer.ActiveAdapters;
import org.lora4j.layer.HfConv1D;
import org.lora4j.layer.LoraConv1d;
import org.lora4j.layer.LoraConv2d;
import org.lora4j.layer.LoraConv3d;
import org.lora4j.layer.LoraEmbedding;
import org.lora4j.layer.LoraHfConv1D;
import org.lora4j.layer.LoraLayer;
import org.lora4j.layer.LoraLinear;
import org.lora4j.layer.LoraMultiheadAttention;
import org.lora4j.layer.QuantizedLinear;
import org.lora4j.ops.Tensors;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** Finds what a configuration means in one model, and puts layers with adapters there. */
final class Injector {
    private static final Logger LOG = LoggerFactory.getLogger(Injector.class);

    private final Module root;
    private final Replication replication;
    private ModuleTree tree;
    private final ActiveAdapters active;
    private final Map<String, LoraLayer> injected = new LinkedHashMap<>();

    Injector(Module root, ActiveAdapters active) {
        this.root = root;
        this.replication = new Replication(root);
        this.tree = new ModuleTree(root);
        this.active = active;
    }

    /** What the layers of the model read. */
    ActiveAdapters active() {
        return active;
    }

    /** Work that makes an adapter. */
    interface Making<E extends Exception> {
        AdapterFactory.Made make() throws E;
    }

    /**
     * Makes an adapter on the layers its configuration asks for, which the model has from then on, unless that fails.
     *
     * @throws IllegalArgumentException if the model cannot have them
     */
    <E extends Exception> AdapterFactory.Made onItsLayers(LoraConfig config, Making<E> work) throws E {
        boolean first = !replication.isDecided();
        if (replication.apply(config)) {
            tree = new ModuleTree(root);
        }
        boolean made = false;
        try {
            AdapterFactory.Made result = work.make();
            made = true;
            return result;
        } finally {
            if (first && !made) {
                restoreLayers();
            }
        }
    }

    /** Puts the model's own stack of layers back; no layer may have an adapter. */
    void restoreLayers() {
        replication.undo();
        tree = new ModuleTree(root);
    }

    /** The dotted paths of all modules. */
    Set<String> paths() {
        return tree.paths();
    }

    /** The layer in place at a path. */
    LoraLayer layer(String path) {
        return Objects.requireNonNull(injected.get(path), path);
    }

    /** The layers in place, in the order they were injected. */
    Map<String, LoraLayer> injected() {
        return injected;
    }

    /**
     * The configuration with what it leaves to the model: targets by default, what "all-linear" means here, the layer that
     * tied ones follow.
     *
     * @throws IllegalArgumentException if the configuration names no targets or asks for another method than LoRA
     */
    LoraConfig resolve(LoraConfig config) {
        return new ModelTargets(root, tree).resolve(config);
    }

    /**
     * The layers a configuration means: those in place already, or new ones that are not injected yet.
     *
     * @throws IllegalArgumentException if there are none, or one is of a kind that cannot carry an adapter
     */
    Map<String, LoraLayer> targets(LoraConfig config) {
        TargetMatcher matcher = new TargetMatcher(config);
        Map<String, LoraLayer> targets = new LinkedHashMap<>();
        boolean excluded = false;
        List<String> paths = new ArrayList<>();
        for (String path : tree.paths()) {
            TargetMatcher.Verdict verdict = matcher.verdict(path);
            excluded |= verdict == TargetMatcher.Verdict.EXCLUDED;
            if (verdict == TargetMatcher.Verdict.TARGET) {
                paths.add(path);
            }
        }
        // Layers that follow another come last, when that has its factors.
        Set<String> following = following(config, paths).keySet();
        paths.removeAll(following);
        paths.addAll(following);
        for (String path : paths) {
            LoraLayer layer = layerAt(path);
            layer.check(config);
            targets.put(path, layer);
            layer.parts().forEach(part -> targets.put(part.path(), part));
        }
        ParameterLayers parameters = new ParameterLayers(root, tree, active);
        parameters.addTo(targets, config, injected);
        boolean selectsNothing = config.targetParameters().isEmpty()
                && config.targetModules() instanceof ModuleSelector.Names names
                && names.names().isEmpty();
        if (targets.isEmpty() && !selectsNothing) {
            String instead = parameters.instead(config);
            if (!instead.isEmpty()) {
                throw new IllegalArgumentException(instead
                        + (config.targetModules() == null
                                ? ""
                                : ", nor targetModules " + config.targetModules() + " a module"));
            }
            throw new IllegalArgumentException("targetModules " + config.targetModules() + " match no module"
                    + (excluded ? " that excludeModules and modulesToSave leave" : "")
                    + (config.layersToTransform().isEmpty() ? "" : " in layers " + config.layersToTransform())
                    + ": this model has, among others, " + ModelTargets.someLinear(tree) + nearMisses(config));
        }
        warnUnmatched(config, targets.keySet());
        return targets;
    }

    /**
     * The layers whose adapters or copies follow those of an embedding that is among the given modules, since they share its
     * weight and {@code ensure_weight_tying} is set: their paths, with that of the embedding.
     */
    Map<String, String> following(LoraConfig config, Collection<String> modules) {
        Map<String, String> following = new LinkedHashMap<>();
        if (config.ensureWeightTying()) {
            ModelTargets.tied(tree).forEach((embedding, others) -> {
                if (modules.contains(embedding)) {
                    others.forEach(other -> following.put(other, embedding));
                }
            });
        }
        return following;
    }

    /** The module at a path as the linear layer it is. */
    LinearImpl linear(String path) {
        return (LinearImpl) Objects.requireNonNull(tree.object(path), path);
    }

    /**
     * The layers whose rows an adapter trains, each with those tied to it by sharing its weight, by path; layers that are
     * new are put among the others.
     *
     * @param layers the layers of the adapter's targets, which receives the new ones
     * @throws IllegalArgumentException if a name means no module, or a module without such rows
     */
    Map<String, List<LoraLayer>> tokenLayers(LoraConfig config, Map<String, LoraLayer> layers) {
        Map<String, List<LoraLayer>> found = new LinkedHashMap<>();
        for (String name : config.trainableTokenIndices().keySet()) {
            List<String> paths = tree.paths().stream()
                    .filter(path -> path.equals(name) || path.endsWith("." + name))
                    .toList();
            if (paths.isEmpty()) {
                throw new IllegalArgumentException("trainable_token_indices names \"" + name
                        + "\", which no module has; near misses: " + NearMisses.of(name, tree.paths()));
            }
            for (String path : paths) {
                LoraLayer layer = layers.computeIfAbsent(path, this::layerAt);
                if (!(layer instanceof LoraEmbedding || layer instanceof LoraLinear)) {
                    throw new IllegalArgumentException("trainable_token_indices names '" + path + "', a " + layer.type()
                            + "; only embeddings and linear layers have rows of tokens");
                }
                List<LoraLayer> own = new ArrayList<>(List.of(layer));
                for (String other : ModelTargets.sharing(tree, path, layer.weight())) {
                    own.add(layers.computeIfAbsent(other, this::layerAt));
                }
                found.put(path, own);
            }
        }
        return found;
    }

    private LoraLayer layerAt(String path) {
        LoraLayer known = injected.get(path);
        return known == null ? newLayer(path) : known;
    }

    /** For each name among the targets that no module has, those it may have been meant for; or nothing. */
    private String nearMisses(LoraConfig config) {
        Map<String, List<String>> near = new LinkedHashMap<>();
        if (config.targetModules() instanceof ModuleSelector.Names names) {
            names.names().forEach(name -> near.put(name, NearMisses.of(name, tree.paths())));
        }
        near.values().removeIf(List::isEmpty);
        return near.isEmpty() ? "" : "; near misses: " + near;
    }

    /** Names and patterns without effect are legal, as in PEFT, and most often a mistake. */
    private void warnUnmatched(LoraConfig config, Set<String> targets) {
        if (config.targetModules() instanceof ModuleSelector.Names names) {
            for (String name : names.names()) {
                if (tree.paths().stream().noneMatch(path -> path.equals(name) || path.endsWith("." + name))) {
                    LOG.warn(
                            "targetModules names \"{}\", which no module has; near misses: {}",
                            name,
                            NearMisses.of(name, tree.paths()));
                }
            }
        }
        Set<String> unmatched = config.unmatchedPatterns(targets);
        if (!unmatched.isEmpty()) {
            LOG.warn("rankPattern and alphaPattern have keys that match no adapted module: {}", unmatched);
        }
    }

    /**
     * The base parameters an adapter keeps copies of: those of modulesToSave, and biases; by path.
     *
     * @param inFile says for a parameter whether the adapter's file has it. PEFT takes a name for any end of a path, within a
     *     name too, so its files may have modules that the names do not mean here
     */
    Map<String, Tensor> saved(LoraConfig config, Set<String> targets, Predicate<String> inFile) {
        boolean bySuffix = active.has(PeftCompat.MODULES_TO_SAVE_BY_SUFFIX);
        Set<String> modules = new LinkedHashSet<>();
        Set<String> perhaps = new LinkedHashSet<>();
        for (String path : tree.paths()) {
            for (String name : config.modulesToSave()) {
                if (path.equals(name) || path.endsWith(bySuffix ? name : "." + name)) {
                    modules.add(path);
                } else if (path.endsWith(name)) {
                    perhaps.add(path);
                }
            }
        }
        Map<String, Tensor> saved = new LinkedHashMap<>();
        Parameters.of(root).forEach((path, parameter) -> {
            int dot = path.lastIndexOf('.');
            String module = path.substring(0, Math.max(0, dot));
            boolean isBias = path.substring(dot + 1).equals("bias");
            if (within(module, modules)
                    || within(module, perhaps) && inFile.test(path)
                    || isBias && config.bias() == BiasMode.ALL
                    || isBias && config.bias() == BiasMode.LORA_ONLY && targets.contains(module)) {
                if (targets.contains(path)) {
                    throw new IllegalArgumentException(
                            "'" + path + "' is among targetParameters " + config.targetParameters()
                                    + " and would be copied for modulesToSave or bias: train it in one of the two ways");
                }
                saved.put(path, parameter);
            }
        });
        return saved;
    }

    /** Puts layers that are not in place yet into the model; all of them or, on an error, none. */
    void inject(Map<String, LoraLayer> layers) {
        ParameterLayers.checkApart(layers, injected);
        List<LoraLayer> done = new ArrayList<>();
        try {
            layers.forEach((path, layer) -> {
                if (!injected.containsKey(path)) {
                    if (!layer.isPart()) {
                        tree.replace(path, (Module) layer);
                    }
                    done.add(layer);
                }
            });
        } catch (RuntimeException e) {
            done.forEach(this::restore);
            if (injected.isEmpty()) {
                restoreLayers();
            }
            throw e;
        }
        done.forEach(layer -> injected.put(layer.path(), layer));
    }

    /** Runs something while layers are in the model that have no adapter yet; they are taken out again afterwards. */
    <T> T whileInjected(Map<String, LoraLayer> layers, Supplier<T> work) {
        Set<String> before = Set.copyOf(injected.keySet());
        inject(layers);
        boolean enabled = active.enabled();
        active.enabled(false);
        try {
            return work.get();
        } finally {
            active.enabled(enabled);
            layers.keySet().stream().filter(path -> !before.contains(path)).forEach(path -> {
                LoraLayer layer = injected.remove(path);
                if (layer != null) {
                    restore(layer);
                }
            });
        }
    }

    /** Those of some layers that a configuration targets. */
    Map<String, LoraLayer> among(Map<String, LoraLayer> layers, LoraConfig config) {
        TargetMatcher matcher = new TargetMatcher(config);
        Map<String, LoraLayer> among = new LinkedHashMap<>();
        layers.forEach((path, layer) -> {
            if (matcher.verdict(layer.configPath()) == TargetMatcher.Verdict.TARGET) {
                among.put(path, layer);
            }
        });
        return among;
    }

    /** Puts the original object of every layer back. */
    void removeAll() {
        injected.values().forEach(this::restore);
        injected.clear();
    }

    private void restore(LoraLayer layer) {
        layer.suspend();
        if (!layer.isPart()) {
            Module original = layer.original();
            tree.replace(layer.path(), original instanceof QuantizedLinear quantized ? quantized.settled() : original);
        }
    }

    private LoraLayer newLayer(String path) {
        Module module = tree.object(path);
        if (module instanceof LinearImpl linear) {
            return Tensors.keep(new LoraLinear(linear, path, active));
        }
        if (module instanceof EmbeddingImpl embedding) {
            return Tensors.keep(new LoraEmbedding(embedding, path, active));
        }
        if (module instanceof Conv1dImpl conv) {
            return Tensors.keep(new LoraConv1d(conv, path, active));
        }
        if (module instanceof Conv2dImpl conv) {
            return Tensors.keep(new LoraConv2d(conv, path, active));
        }
        if (module instanceof Conv3dImpl conv) {
            return Tensors.keep(new LoraConv3d(conv, path, active));
        }
        if (module instanceof MultiheadAttentionImpl attention) {
            return Tensors.keep(new LoraMultiheadAttention(attention, path, active));
        }
        if (module instanceof HfConv1D conv) {
            return Tensors.keep(new LoraHfConv1D(conv, path, active));
        }
        int dot = path.lastIndexOf('.');
        if (module == null && dot > 0 && tree.object(path.substring(0, dot)) instanceof MultiheadAttentionImpl) {
            throw new IllegalArgumentException(
                    "module '" + path + "' is part of the multi-head attention '" + path.substring(0, dot)
                            + "', which is adapted as a whole: name the attention in targetModules instead");
        }
        if (module == null) {
            throw new IllegalArgumentException("module '" + path + "' (" + tree.type(path)
                    + ") is not held by a Java object of the model, so its forward runs inside C++ and cannot take an"
                    + " adapter: keep it in a field, array, list or map of its parent's Java class and call it there");
        }
        throw new IllegalArgumentException(
                "module '" + path + "' is a " + module.getClass().getSimpleName()
                        + ", which cannot carry an adapter; linear, embedding, convolution and attention layers can: narrow targetModules"
                        + " or exclude it");
    }

    private static boolean within(String module, Set<String> modules) {
        return modules.stream().anyMatch(m -> module.equals(m) || module.startsWith(m + "."));
    }
}
