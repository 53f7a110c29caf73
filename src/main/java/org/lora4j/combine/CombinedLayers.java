package org.lora4j.combine;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.function.Function;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.global.torch.ScalarType;

/**
 * The layers of a combination, one module after another, so that only one is in memory. A rank budget for all layers needs
 * every layer's singular values first and computes each layer twice.
 */
public final class CombinedLayers {
    /** Receives a layer, whose tensors are in a scope that ends afterwards. */
    public interface Sink<E extends Exception> {
        void layer(String path, LayerResult result) throws E;
    }

    private final Map<String, List<String>> modules = new LinkedHashMap<>();
    private final Function<String, LayerInput> inputs;
    private final CombineOptions options;

    /**
     * @param modules for each layer the module its rank belongs to, in the order of the work
     * @param inputs makes the input of a layer in the current scope
     */
    public CombinedLayers(Map<String, String> modules, Function<String, LayerInput> inputs, CombineOptions options) {
        modules.forEach((path, module) ->
                this.modules.computeIfAbsent(module, m -> new ArrayList<>()).add(path));
        this.inputs = inputs;
        this.options = options;
    }

    /**
     * Checks what every layer is given, and does nothing.
     *
     * @throws IllegalArgumentException naming the layer whose factors do not fit or are not finite
     */
    public void check() {
        for (List<String> paths : modules.values()) {
            try (PointerScope scope = new PointerScope()) {
                paths.forEach(inputs::apply);
            }
        }
    }

    /**
     * Combines all layers.
     *
     * @param types of the factors by layer
     * @param withBias whether every layer has a bias on B
     * @param withMagnitude whether every layer has a magnitude
     * @return the rank of each module
     */
    public <E extends Exception> Map<String, Integer> forEach(
            Function<String, ScalarType> types, boolean withBias, boolean withMagnitude, Sink<E> sink) throws E {
        Map<String, Integer> budget = budget();
        Map<String, Integer> ranks = new LinkedHashMap<>();
        for (Map.Entry<String, List<String>> module : modules.entrySet()) {
            try (PointerScope scope = new PointerScope();
                    NoGradGuard noGrad = new NoGradGuard();
                    Parts parts = new Parts(module.getValue())) {
                int rank = budget.isEmpty() ? parts.rank() : Objects.requireNonNull(budget.get(module.getKey()));
                ranks.put(module.getKey(), rank);
                for (Map.Entry<String, Combined> part : parts.combined.entrySet()) {
                    String path = part.getKey();
                    sink.layer(path, part.getValue().at(rank, types.apply(path), withBias, withMagnitude));
                }
            }
        }
        return ranks;
    }

    /** The rank of each module where they are shared out, else nothing. */
    private Map<String, Integer> budget() {
        if (!(options.rank() instanceof RankRule.Total total)) {
            return Map.of();
        }
        Map<String, double[]> energies = new LinkedHashMap<>();
        Map<String, Integer> steps = new LinkedHashMap<>();
        modules.forEach((module, paths) -> {
            try (PointerScope scope = new PointerScope();
                    Parts parts = new Parts(paths)) {
                for (Combined part : parts.combined.values()) {
                    energies.merge(module, part.energies(), CombinedLayers::sum);
                    steps.merge(module, part.input().groups(), Math::max);
                }
            }
        });
        return RankBudget.share(total, energies, steps);
    }

    private static double[] sum(double[] one, double[] other) {
        double[] sum = one.length > other.length ? one.clone() : other.clone();
        for (int i = 0; i < Math.min(one.length, other.length); i++) {
            sum[i] = one[i] + other[i];
        }
        return sum;
    }

    /** The layers of one module. */
    private final class Parts implements AutoCloseable {
        private final Map<String, Combined> combined = new LinkedHashMap<>();

        Parts(List<String> paths) {
            try {
                for (String path : paths) {
                    LayerInput input = inputs.apply(path);
                    try (PointerScope scope = new PointerScope()) {
                        combined.put(path, Combined.of(input, options));
                    }
                }
            } catch (RuntimeException failure) {
                close();
                throw failure;
            }
        }

        int rank() {
            return combined.values().stream()
                    .mapToInt(each -> each.rank(options.rank()))
                    .max()
                    .orElseThrow();
        }

        @Override
        public void close() {
            combined.values().forEach(Combined::close);
        }
    }
}
