package org.lora4j.model;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import org.bytedeco.pytorch.Tensor;
import org.lora4j.combine.Concatenation;
import org.lora4j.config.LoraConfig;
import org.lora4j.layer.Adapter;
import org.lora4j.layer.LoraLayer;
import org.lora4j.layer.LoraWeights;

/** A weighted sum of adapters of one model, as the configuration and factors of a new one. */
final class WeightedSum {
    private final LoraConfig config;
    private final Map<String, LoraLayer> layers = new LinkedHashMap<>();
    private final Map<String, LoraWeights> weights = new LinkedHashMap<>();

    WeightedSum(List<Adapter> adapters, List<Double> factors, Injector injector) {
        check(adapters, factors);
        Map<String, Concatenation.Factors> sums = new LinkedHashMap<>();
        for (Map.Entry<String, LoraLayer> entry : injector.injected().entrySet()) {
            String path = entry.getKey();
            List<LoraWeights> parts = new ArrayList<>();
            List<Double> chosen = new ArrayList<>();
            for (int i = 0; i < adapters.size(); i++) {
                LoraWeights part = adapters.get(i).weights().get(path);
                if (part != null) {
                    parts.add(part);
                    chosen.add(factors.get(i));
                }
            }
            if (!parts.isEmpty()) {
                checkGroups(entry.getValue(), parts.get(0));
                layers.put(path, entry.getValue());
                sums.put(path, Concatenation.of(parts, chosen));
            }
        }
        int rank = adapters.stream().mapToInt(a -> a.config().r()).sum();
        Map<String, Integer> ranks = new LinkedHashMap<>();
        sums.forEach((path, sum) -> {
            if (sum.a().size(0) != rank) {
                String module = configPath(path);
                ranks.put("^" + module.replace(".", "\\."), (int) sum.a().size(0));
            }
        });
        config = LoraConfig.builder()
                .r(rank)
                .loraAlpha(rank)
                .rankPattern(ranks)
                .alphaPattern(ranks)
                .targetModules(names(injector))
                .taskType(adapters.get(0).config().taskType())
                .layerReplication(adapters.get(0).config().layerReplication())
                .build();
        sums.forEach((path, sum) -> weights.put(path, new LoraWeights(config, configPath(path), sum.a(), sum.b())));
    }

    LoraConfig config() {
        return config;
    }

    Map<String, LoraLayer> layers() {
        return layers;
    }

    Map<String, LoraWeights> weights() {
        return weights;
    }

    /** The last parts of the layers' names if they mean exactly these layers, else the whole paths. */
    private Set<String> names(Injector injector) {
        Set<String> last = new LinkedHashSet<>();
        Set<String> modules = new LinkedHashSet<>();
        layers.values().forEach(layer -> modules.add(layer.configPath()));
        modules.forEach(path -> last.add(path.substring(path.lastIndexOf('.') + 1)));
        boolean exact = injector.paths().stream()
                .filter(path -> last.contains(path.substring(path.lastIndexOf('.') + 1)))
                .allMatch(modules::contains);
        return exact ? last : modules;
    }

    private String configPath(String path) {
        return Objects.requireNonNull(layers.get(path)).configPath();
    }

    private static void check(List<Adapter> adapters, List<Double> factors) {
        if (adapters.isEmpty() || adapters.size() != factors.size()) {
            throw new IllegalArgumentException(adapters.size() + " adapters and " + factors.size()
                    + " weights: name at least one adapter and give a weight for each");
        }
        for (double factor : factors) {
            if (!Double.isFinite(factor)) {
                throw new IllegalArgumentException("weight " + factor + " must be a finite number");
            }
        }
        for (Adapter adapter : adapters) {
            if (!adapter.config().invocationTokens().isEmpty()) {
                throw new IllegalArgumentException(
                        "adapter \"" + adapter.name() + "\" applies from its invocation tokens "
                                + adapter.config().invocationTokens()
                                + " on, which a sum of adapters cannot express: leave it out");
            }
            if (!adapter.config().targetParameters().isEmpty()) {
                throw new IllegalArgumentException("adapter \"" + adapter.name() + "\" has targetParameters "
                        + adapter.config().targetParameters()
                        + ", whose factors cannot be put side by side: combine adapters of targetModules");
            }
            if (!adapter.saved().isEmpty()) {
                throw new IllegalArgumentException("adapter \"" + adapter.name() + "\" has copies of "
                        + adapter.saved().keySet()
                        + ", whose sum is not defined: combine adapters without modulesToSave"
                        + " and biases");
            }
        }
    }

    private static void checkGroups(LoraLayer layer, LoraWeights part) {
        Tensor b = part.b();
        if (b.size(1) != part.rank()) {
            throw new IllegalArgumentException(
                    "layer '" + layer.path() + "' is a convolution with groups, whose factors"
                            + " cannot be put side by side: leave it out of the combination");
        }
    }
}
