package org.lora4j.model;

import java.util.ArrayList;
import java.util.EnumMap;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.combine.CombineChecks;
import org.lora4j.combine.CombineOptions;
import org.lora4j.combine.CombinedConfig;
import org.lora4j.combine.CombinedLayers;
import org.lora4j.combine.LayerInput;
import org.lora4j.combine.LayerReport;
import org.lora4j.combine.LayerResult;
import org.lora4j.combine.TargetNames;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.ModuleSelector;
import org.lora4j.layer.Adapter;
import org.lora4j.layer.Conversion;
import org.lora4j.layer.Factors;
import org.lora4j.layer.LoraLayer;
import org.lora4j.layer.LoraWeights;
import org.lora4j.layer.SavedParameter;

/**
 * A combination of adapters of one model: configuration, factors and copied parameters of a new one. The base model's own
 * parameters must be in place while it is made.
 */
final class WeightedSum {
    private final List<Adapter> adapters;
    private final List<Double> factors;
    private final CombineOptions options;
    private final Injector injector;
    private final Map<String, LoraLayer> layers = new LinkedHashMap<>();
    private final Map<String, LoraWeights> weights = new LinkedHashMap<>();
    private final List<LayerReport> reports = new ArrayList<>();

    /**
     * Checks everything and changes nothing.
     *
     * @throws IllegalArgumentException if names, weights or adapters do not fit
     */
    WeightedSum(List<Adapter> adapters, List<Double> factors, CombineOptions options, Injector injector) {
        this.adapters = adapters;
        this.factors = factors;
        this.options = options;
        this.injector = injector;
        List<String> names = adapters.stream().map(Adapter::name).toList();
        CombineChecks.weights(names, factors, options);
        CombinedConfig.check(names, configs(), options);
        Map<String, Set<String>> targets = new LinkedHashMap<>();
        for (Adapter adapter : adapters) {
            targets.put(adapter.name(), adapter.weights().keySet());
            if (!adapter.tokens().isEmpty()) {
                throw new IllegalArgumentException("adapter \"" + adapter.name() + "\" replaces rows of "
                        + adapter.tokens().keySet() + ", which have no weighted sum with others: leave it out");
            }
        }
        CombineChecks.targets(targets, options);
        injector.injected().forEach((path, layer) -> {
            if (adapters.stream().anyMatch(adapter -> adapter.weights().containsKey(path))) {
                layers.put(path, layer);
            }
        });
    }

    private List<LoraConfig> configs() {
        return adapters.stream().map(Adapter::config).toList();
    }

    /** Makes the new adapter, which is in no layer yet. */
    AdapterFactory.Made make(String name) {
        Map<String, String> modules = new LinkedHashMap<>();
        layers.forEach((path, layer) -> modules.put(path, layer.configPath()));
        CombinedLayers work = new CombinedLayers(modules, path -> input(path, layer(path)), options);
        work.check();
        Map<String, LayerResult> results = new LinkedHashMap<>();
        try (NoGradGuard noGrad = new NoGradGuard()) {
            boolean withBias = CombinedConfig.hasBias(configs(), options);
            boolean withMagnitude = CombinedConfig.hasMagnitude(configs(), options);
            Map<String, Integer> ranks = work.<RuntimeException>forEach(
                    path -> layer(path).factorType(),
                    withBias,
                    withMagnitude,
                    (path, result) -> results.put(path, result.kept()));
            LoraConfig config = CombinedConfig.of(configs(), ranks, targets(), options);
            Map<String, SavedParameter> saved = saved();
            layers.keySet().forEach(path -> add(path, Objects.requireNonNull(results.get(path)), config));
            return new AdapterFactory.Made(new Adapter(name, config, weights, saved), layers, Map.of());
        } catch (RuntimeException failure) {
            weights.values().forEach(LoraWeights::close);
            throw failure;
        } finally {
            results.values().forEach(LayerResult::close);
        }
    }

    private LoraLayer layer(String path) {
        return Objects.requireNonNull(layers.get(path), path);
    }

    /** What became of each layer, after {@link #make}. */
    List<LayerReport> reports() {
        return reports;
    }

    private void add(String path, LayerResult result, LoraConfig config) {
        LoraLayer layer = Objects.requireNonNull(layers.get(path));
        Map<LoraWeights.Part, Tensor> parts = new EnumMap<>(LoraWeights.Part.class);
        parts.put(LoraWeights.Part.A, result.a());
        parts.put(LoraWeights.Part.B, result.b());
        if (result.bias() != null) {
            parts.put(LoraWeights.Part.BIAS, result.bias());
        }
        if (result.magnitude() != null) {
            parts.put(LoraWeights.Part.MAGNITUDE, result.magnitude().view(layer.shapeMagnitude()));
        }
        LoraWeights made = new LoraWeights(config, configPath(path), parts);
        weights.put(path, made);
        reports.add(result.report().withScale(made.scale()));
    }

    private LayerInput input(String path, LoraLayer layer) {
        List<LayerInput.Member> members = new ArrayList<>();
        List<Double> here = options.weights(path, factors);
        for (int i = 0; i < adapters.size(); i++) {
            LoraWeights own = adapters.get(i).weights().get(path);
            if (own != null) {
                Factors plain = plain(adapters.get(i), own);
                members.add(new LayerInput.Member(
                        i, plain.a(), plain.b(), own.scale(), here.get(i), own.bias(), own.magnitude()));
            }
        }
        return new LayerInput(path, members, () -> layer.matrix(layer.adapters().unmergedWeight(layer)));
    }

    /** The factors for the base model as it was before any adapter. */
    private static Factors plain(Adapter adapter, LoraWeights weights) {
        Factors now = new Factors(weights.a().detach(), weights.b().detach());
        Factors initial = weights.initial();
        if (initial != null) {
            return Conversion.subtractInitial(now, initial);
        }
        if (adapter.config().initLoraWeights().changesBase()) {
            throw new IllegalArgumentException("adapter \"" + adapter.name() + "\" started from initLoraWeights="
                    + adapter.config().initLoraWeights()
                    + ", which changed the base weights in a way factors cannot express: leave it out");
        }
        return now;
    }

    /** Copied parameters add up as changes of the base's: {@code P + sum_i w_i (P_i - P)}. */
    private Map<String, SavedParameter> saved() {
        Map<String, Tensor> changes = new LinkedHashMap<>();
        Map<String, Tensor> parameters = new LinkedHashMap<>();
        for (int i = 0; i < adapters.size(); i++) {
            Scalar factor = new Scalar(factors.get(i));
            adapters.get(i).saved().forEach((path, saved) -> {
                if (saved.trains()) {
                    Tensor own = saved.value().detach().to(ScalarType.Double);
                    Tensor change = own.sub(saved.parameter().detach()).mul(factor);
                    changes.merge(path, change, Tensor::add);
                    parameters.put(path, saved.parameter());
                }
            });
        }
        Map<String, SavedParameter> saved = new LinkedHashMap<>();
        changes.forEach((path, change) -> {
            Tensor parameter = Objects.requireNonNull(parameters.get(path));
            saved.put(path, new SavedParameter(parameter, change.add(parameter.detach())));
        });
        return saved;
    }

    private ModuleSelector targets() {
        Set<String> modules = new LinkedHashSet<>();
        layers.values().forEach(layer -> modules.add(layer.configPath()));
        return TargetNames.of(modules, injector.paths());
    }

    private String configPath(String path) {
        return Objects.requireNonNull(layers.get(path)).configPath();
    }
}
