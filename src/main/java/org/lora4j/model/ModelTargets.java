package org.lora4j.model;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.regex.Pattern;
import org.bytedeco.pytorch.EmbeddingImpl;
import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.Tensor;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.DefaultTargets;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.ModuleSelector;
import org.lora4j.config.PythonRegex;
import org.lora4j.layer.HfConv1D;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** What a configuration leaves to one model: targets by default, every linear layer, layers that share a weight. */
final class ModelTargets {
    private static final Logger LOG = LoggerFactory.getLogger(ModelTargets.class);
    private static final String OUTPUT_LAYER = "lm_head";

    private final Module root;
    private final ModuleTree tree;

    ModelTargets(Module root, ModuleTree tree) {
        this.root = root;
        this.tree = tree;
    }

    /**
     * The configuration in terms of this model's modules.
     *
     * @throws IllegalArgumentException if there are no targets, or the configuration asks for what lora4j does not do
     */
    LoraConfig resolve(LoraConfig config) {
        config.warnings().forEach(LOG::warn);
        Map<String, @Nullable Object> unsupported = config.nonDefaultUnsupported();
        if (!unsupported.isEmpty()) {
            throw new IllegalArgumentException("the configuration sets " + unsupported
                    + ", which lora4j does not do yet: the adapter would compute something else");
        }
        String modelType = root instanceof PretrainedModel model ? model.modelType() : null;
        if (config.targetModules() == null
                && modelType == null
                && config.targetParameters().isEmpty()) {
            throw new IllegalArgumentException(
                    "LoraConfig.targetModules is not set: name the modules to adapt, such as " + someLinear(tree));
        }
        LoraConfig resolved = DefaultTargets.resolve(config, modelType);
        if (resolved.targetModules() instanceof ModuleSelector.AllLinear) {
            List<String> linear = tree.paths().stream()
                    .filter(path -> isLinear(tree.object(path)))
                    .toList();
            String outputLayer = tree.paths().contains(OUTPUT_LAYER) ? OUTPUT_LAYER : null;
            resolved = resolved.toBuilder()
                    .targetModules(TargetMatcher.allLinear(linear, tree.paths(), outputLayer, config.taskType()))
                    .build();
        }
        return MinimalTargets.condense(config.ensureWeightTying() ? tie(resolved) : resolved, tree.paths());
    }

    /**
     * With {@code ensure_weight_tying}: where a configuration names an embedding or a layer that shares its weight, it names
     * the embedding, which the other follows; PEFT's {@code _check_tied_modules}.
     */
    private LoraConfig tie(LoraConfig config) {
        Map<String, List<String>> tied = tied(tree);
        if (tied.isEmpty()) {
            LOG.warn("ensure_weight_tying is set, but no layer of the model shares the weight of an embedding");
            return config;
        }
        LoraConfig result = config;
        boolean found = false;
        for (Map.Entry<String, List<String>> each : tied.entrySet()) {
            List<String> group = new ArrayList<>(List.of(each.getKey()));
            group.addAll(each.getValue());
            if (group.stream().anyMatch(path -> named(path, config.modulesToSave()))) {
                Set<String> saved = new LinkedHashSet<>(result.modulesToSave());
                saved.add(each.getKey());
                each.getValue().forEach(path -> saved.removeIf(name -> means(name, path)));
                result = result.toBuilder().modulesToSave(List.copyOf(saved)).build();
                found = true;
            } else if (config.targetModules() instanceof ModuleSelector.Names names
                    && group.stream().anyMatch(path -> named(path, names.names()))) {
                Set<String> targets = new LinkedHashSet<>(names.names());
                targets.add(each.getKey());
                each.getValue().forEach(path -> targets.removeIf(name -> means(name, path)));
                result = result.toBuilder().targetModules(targets).build();
                found = true;
            } else if (config.targetModules() instanceof ModuleSelector.Regex regex
                    && group.stream()
                            .anyMatch(path -> PythonRegex.compile(regex.regex())
                                    .matcher(path)
                                    .matches())) {
                String embedding = "^" + each.getKey().replace(".", "\\.") + "$";
                if (!regex.regex().endsWith("|" + embedding + ")")) {
                    result = result.toBuilder()
                            .targetModules(ModuleSelector.regex("(?:" + regex.regex() + "|" + embedding + ")"))
                            .build();
                }
                found = true;
            }
        }
        if (!found) {
            LOG.warn(
                    "ensure_weight_tying is set, but neither targetModules nor modulesToSave name a layer of {}", tied);
        }
        return result;
    }

    private static boolean named(String path, Iterable<String> names) {
        for (String name : names) {
            if (path.equals(name) || path.endsWith("." + name)) {
                return true;
            }
        }
        return false;
    }

    private static boolean means(String name, String path) {
        return Pattern.compile("(^|.*\\.)" + Pattern.quote(name) + "($|\\..*)")
                .matcher(path)
                .matches();
    }

    /** The embeddings whose weight other layers share, such as a tied output layer: their paths, with those of the others. */
    static Map<String, List<String>> tied(ModuleTree tree) {
        Map<String, List<String>> tied = new LinkedHashMap<>();
        for (String path : tree.paths()) {
            if (tree.object(path) instanceof EmbeddingImpl embedding) {
                List<String> others = sharing(tree, path, embedding.weight());
                if (!others.isEmpty()) {
                    tied.put(path, others);
                }
            }
        }
        return tied;
    }

    /** The paths of the linear layers, other than the given one, that compute with the memory of a weight. */
    static List<String> sharing(ModuleTree tree, String path, Tensor weight) {
        return tree.paths().stream()
                .filter(other -> !other.equals(path)
                        && tree.object(other) instanceof LinearImpl linear
                        && linear.weight().data_ptr().equals(weight.data_ptr()))
                .toList();
    }

    /** The names of a few linear layers, for messages. */
    static List<String> someLinear(ModuleTree tree) {
        return tree.paths().stream()
                .filter(path -> isLinear(tree.object(path)))
                .map(path -> path.substring(path.lastIndexOf('.') + 1))
                .distinct()
                .limit(8)
                .toList();
    }

    static boolean isLinear(@Nullable Module module) {
        return module instanceof LinearImpl || module instanceof HfConv1D;
    }
}
