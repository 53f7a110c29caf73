package org.lora4j.combine;

import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;

/** What must hold before adapters are combined. */
public final class CombineChecks {
    private static final int SHOWN = 8;

    private CombineChecks() {}

    /**
     * Checks names and weights against each other and against the type.
     *
     * @throws IllegalArgumentException naming the adapter or weight that is wrong
     */
    public static void weights(List<String> names, List<Double> weights, CombineOptions options) {
        if (names.isEmpty() || names.size() != weights.size()) {
            throw new IllegalArgumentException(names.size() + " adapters and " + weights.size()
                    + " weights: name at least one adapter and give a weight for each");
        }
        Set<String> seen = new HashSet<>();
        for (int i = 0; i < names.size(); i++) {
            if (!seen.add(names.get(i))) {
                throw new IllegalArgumentException(
                        "adapter \"" + names.get(i) + "\" is named twice: name it once, with the sum of its weights");
            }
            double weight = weights.get(i);
            if (!Double.isFinite(weight)) {
                throw new IllegalArgumentException(
                        "weight " + weight + " of adapter \"" + names.get(i) + "\" must be a finite number");
            }
        }
        if (options.type() == CombinationType.SLERP) {
            slerp(weights);
        }
    }

    private static void slerp(List<Double> weights) {
        boolean fits = weights.size() == 2
                && weights.get(0) >= 0
                && weights.get(1) >= 0
                && weights.get(0) + weights.get(1) > 0;
        if (!fits) {
            throw new IllegalArgumentException("slerp goes from one adapter to another: give two weights that are not "
                    + "negative, such as 0.5 and 0.5, instead of " + weights);
        }
    }

    /**
     * Checks that all adapters have the same layers, unless the options allow others, and the weights by layer.
     *
     * @param layers of each adapter by its name
     */
    public static void targets(Map<String, Set<String>> layers, CombineOptions options) {
        Set<String> all = new TreeSet<>();
        layers.values().forEach(all::addAll);
        if (!options.differentTargets()) {
            List<String> lacking = new ArrayList<>();
            layers.forEach((adapter, own) -> {
                for (String layer : all) {
                    if (!own.contains(layer)) {
                        lacking.add("\"" + adapter + "\" lacks " + layer);
                    }
                }
            });
            if (!lacking.isEmpty()) {
                int more = lacking.size() - SHOWN;
                throw new IllegalArgumentException("the adapters have different targets: "
                        + String.join("; ", lacking.subList(0, Math.min(SHOWN, lacking.size())))
                        + (more > 0 ? "; and " + more + " more" : "")
                        + ". Combine adapters of the same targets, or allow different ones: then what an adapter lacks"
                        + " counts as no update");
            }
        }
        options.checkWeights(layers.size(), all);
    }
}
