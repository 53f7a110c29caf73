package org.lora4j.combine;

import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.BiasMode;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.LoraConfigBuilder;
import org.lora4j.config.ModuleSelector;
import org.lora4j.config.PeftCompat;
import org.lora4j.config.TaskType;

/** The configuration of an adapter whose factors hold the scale: alpha is the rank at every layer. */
public final class CombinedConfig {
    private CombinedConfig() {}

    /**
     * Checks what the configurations ask for beside factors.
     *
     * @param names of the adapters, for messages
     * @param configs in the same order
     * @throws IllegalArgumentException naming the adapter and the field, if a combination cannot have it
     */
    public static void check(List<String> names, List<LoraConfig> configs, CombineOptions options) {
        boolean dora = configs.stream().anyMatch(LoraConfig::useDora);
        boolean bias = configs.stream().anyMatch(LoraConfig::loraBias);
        if (dora && bias && !options.has(PeftCompat.COMBINATION_DROPS_PARTS)) {
            throw new IllegalArgumentException(
                    "of the adapters " + names + " some use use_dora and some lora_bias, which no"
                            + " adapter can have both: combine them separately");
        }
        for (int i = 0; i < configs.size(); i++) {
            LoraConfig config = configs.get(i);
            if (!config.invocationTokens().equals(configs.get(0).invocationTokens())) {
                LoraConfig own = config.invocationTokens().isEmpty() ? configs.get(0) : config;
                throw new IllegalArgumentException("adapter \"" + names.get(configs.indexOf(own))
                        + "\" applies from its invocation tokens " + own.invocationTokens()
                        + " on and another does not, which a sum of adapters cannot express: leave one out");
            }
            if (!config.layerReplication().equals(configs.get(0).layerReplication())) {
                throw new IllegalArgumentException("adapter \"" + names.get(i) + "\" has layer_replication "
                        + config.layerReplication() + ", but \"" + names.get(0) + "\" has "
                        + configs.get(0).layerReplication() + ": combine adapters of the same layers");
            }
            if (!config.targetParameters().isEmpty()) {
                throw new IllegalArgumentException("adapter \"" + names.get(i) + "\" has targetParameters "
                        + config.targetParameters()
                        + ", whose factors cannot be put side by side: combine adapters of targetModules");
            }
            if (config.bias() != BiasMode.NONE) {
                throw new IllegalArgumentException("adapter \"" + names.get(i) + "\" trains biases of the base (bias "
                        + config.bias().jsonName() + "), and such adapters must be alone on a model: leave it out");
            }
            if (!config.trainableTokenIndices().isEmpty()) {
                throw new IllegalArgumentException("adapter \"" + names.get(i) + "\" replaces rows of "
                        + config.trainableTokenIndices().keySet()
                        + " (trainable_token_indices), which have no weighted sum with others: leave it out");
            }
        }
    }

    /**
     * The configuration.
     *
     * @param configs of the adapters combined; the first gives what they share
     * @param ranks the rank at each module, by the path a configuration knows it by
     * @param targets the modules
     */
    public static LoraConfig of(
            List<LoraConfig> configs, Map<String, Integer> ranks, ModuleSelector targets, CombineOptions options) {
        LoraConfig first = configs.get(0);
        int rank = mostFrequent(ranks.values());
        Map<String, Integer> others = new LinkedHashMap<>();
        ranks.forEach((path, own) -> {
            if (own != rank) {
                others.put("^" + escaped(path), own);
            }
        });
        Map<String, Double> alphas = new LinkedHashMap<>();
        others.forEach((path, own) -> alphas.put(path, own.doubleValue()));
        LoraConfigBuilder builder = LoraConfig.builder()
                .r(rank)
                .loraAlpha(rank)
                .rankPattern(others)
                .alphaPattern(alphas)
                .targetModules(targets)
                .fanInFanOut(first.fanInFanOut())
                .useRslora(options.has(PeftCompat.COMBINATION_KEEPS_RSLORA) && first.useRslora())
                .useDora(hasMagnitude(configs, options))
                .loraBias(hasBias(configs, options))
                .modulesToSave(modulesToSave(configs))
                .layerReplication(first.layerReplication())
                .baseModelNameOrPath(base(configs))
                .taskType(taskType(configs));
        if (!first.invocationTokens().isEmpty()) {
            builder.otherField("alora_invocation_tokens", first.otherFields().get("alora_invocation_tokens"));
        }
        return builder.build();
    }

    /** Whether the combination has biases on B. */
    public static boolean hasBias(List<LoraConfig> configs, CombineOptions options) {
        return options.has(PeftCompat.COMBINATION_DROPS_PARTS)
                ? configs.get(0).loraBias()
                : configs.stream().anyMatch(LoraConfig::loraBias);
    }

    /** Whether the combination has magnitudes. */
    public static boolean hasMagnitude(List<LoraConfig> configs, CombineOptions options) {
        return options.has(PeftCompat.COMBINATION_DROPS_PARTS)
                ? configs.get(0).useDora()
                : configs.stream().anyMatch(LoraConfig::useDora);
    }

    /** An expression for exactly this path. */
    static String escaped(String path) {
        return path.replaceAll("[^A-Za-z0-9_]", "\\\\$0");
    }

    static int mostFrequent(Collection<Integer> ranks) {
        Map<Integer, Integer> counts = new LinkedHashMap<>();
        ranks.forEach(rank -> counts.merge(rank, 1, Integer::sum));
        return counts.entrySet().stream()
                .max(Map.Entry.comparingByValue())
                .orElseThrow(() -> new IllegalArgumentException("there is no layer to combine"))
                .getKey();
    }

    private static Set<String> modulesToSave(List<LoraConfig> configs) {
        Set<String> modules = new LinkedHashSet<>();
        configs.forEach(config -> modules.addAll(config.modulesToSave()));
        return modules;
    }

    private static @Nullable String base(List<LoraConfig> configs) {
        return configs.stream()
                .map(LoraConfig::baseModelNameOrPath)
                .filter(Objects::nonNull)
                .findFirst()
                .orElse(null);
    }

    private static @Nullable TaskType taskType(List<LoraConfig> configs) {
        return configs.stream()
                .map(LoraConfig::taskType)
                .filter(Objects::nonNull)
                .findFirst()
                .orElse(null);
    }
}
