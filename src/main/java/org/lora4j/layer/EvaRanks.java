package org.lora4j.layer;

import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.Map;
import java.util.Set;
import java.util.stream.Collectors;
import org.lora4j.config.EvaConfig;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.ModuleSelector;

/** The configuration of an adapter whose ranks {@link EvaSearch} gave. */
public final class EvaRanks {
    private EvaRanks() {}

    /**
     * Targets, rank pattern and alpha pattern by the full path of each layer. With {@code adjust_scaling_factors} alpha
     * follows the rank, so that the scale of the layer stays: times new / old, with {@code useRslora} times the root of
     * that, where PEFT takes the plain ratio and the scale moves.
     *
     * @param config the adapter's configuration before
     * @param ranks the rank of every layer the search saw; 0 drops it
     * @param others the adapted layers it did not see, which keep what they have
     */
    public static LoraConfig config(LoraConfig config, Map<String, Integer> ranks, Collection<String> others) {
        boolean adjust = EvaConfig.of(config).adjustScalingFactors();
        Map<String, Integer> after = new LinkedHashMap<>();
        ranks.forEach((path, rank) -> {
            if (rank > 0) {
                after.put(path, rank);
            }
        });
        others.forEach(path -> after.put(path, config.rankFor(path)));
        Map<String, Integer> rankPattern = new LinkedHashMap<>();
        Map<String, Double> alphaPattern = new LinkedHashMap<>();
        after.forEach((path, rank) -> {
            double ratio = (double) rank / config.rankFor(path);
            double factor = !adjust ? 1 : config.useRslora() ? Math.sqrt(ratio) : ratio;
            double alpha = config.alphaFor(path) * factor;
            // A pattern also fits the end of a longer path, so it must not pass for that layer's.
            String key = isEnd(path, after.keySet()) ? "^" + path : path;
            if (rank != config.r()) {
                rankPattern.put(key, rank);
            }
            if (alpha != config.loraAlpha()) {
                alphaPattern.put(key, alpha);
            }
        });
        return config.toBuilder()
                .targetModules(targets(after.keySet(), ranks.keySet()))
                .layersToTransform()
                .layersPattern()
                .rankPattern(rankPattern)
                .alphaPattern(alphaPattern)
                .build();
    }

    private static ModuleSelector targets(Set<String> kept, Set<String> all) {
        Set<String> dropped = new LinkedHashSet<>(all);
        dropped.removeAll(kept);
        boolean ambiguous = kept.stream().anyMatch(path -> isEnd(path, dropped));
        return ambiguous
                ? ModuleSelector.regex(
                        kept.stream().map(path -> path.replace(".", "\\.")).collect(Collectors.joining("|")))
                : ModuleSelector.names(kept);
    }

    /** Whether a path is also the end of a longer one. */
    private static boolean isEnd(String path, Set<String> paths) {
        return paths.stream().anyMatch(each -> each.endsWith("." + path));
    }
}
