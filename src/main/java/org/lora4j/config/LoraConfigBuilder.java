package org.lora4j.config;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/** Collects the fields of a {@link LoraConfig}; {@link #build()} checks them. Each setter is described there. */
public final class LoraConfigBuilder {
    int r = 8;
    double loraAlpha = 8;

    @Nullable
    ModuleSelector targetModules;

    @Nullable
    ModuleSelector excludeModules;

    double loraDropout;
    BiasMode bias = BiasMode.NONE;
    Collection<String> modulesToSave = List.of();
    Collection<Integer> layersToTransform = List.of();
    Collection<String> layersPattern = List.of();
    Map<String, Integer> rankPattern = Map.of();
    Map<String, Double> alphaPattern = Map.of();
    boolean useRslora;
    boolean fanInFanOut;
    InitLoraWeights initLoraWeights = InitLoraWeights.DEFAULT;

    @Nullable
    TaskType taskType;

    @Nullable
    String baseModelNameOrPath;

    @Nullable
    String revision;

    boolean inferenceMode;
    String peftVersion = LoraConfig.PEFT_VERSION;
    final Map<String, @Nullable Object> otherFields = new LinkedHashMap<>();
    boolean keepUnknown;

    LoraConfigBuilder() {}

    public LoraConfigBuilder r(int r) {
        this.r = r;
        return this;
    }

    public LoraConfigBuilder loraAlpha(double loraAlpha) {
        this.loraAlpha = loraAlpha;
        return this;
    }

    /** Targets by name; see {@link ModuleSelector.Names}. */
    public LoraConfigBuilder targetModules(String... names) {
        return targetModules(ModuleSelector.names(names));
    }

    public LoraConfigBuilder targetModules(Collection<String> names) {
        return targetModules(ModuleSelector.names(names));
    }

    public LoraConfigBuilder targetModules(@Nullable ModuleSelector targetModules) {
        this.targetModules = targetModules;
        return this;
    }

    /** Exclusions by name; see {@link ModuleSelector.Names}. */
    public LoraConfigBuilder excludeModules(String... names) {
        return excludeModules(ModuleSelector.names(names));
    }

    public LoraConfigBuilder excludeModules(Collection<String> names) {
        return excludeModules(ModuleSelector.names(names));
    }

    public LoraConfigBuilder excludeModules(@Nullable ModuleSelector excludeModules) {
        this.excludeModules = excludeModules;
        return this;
    }

    public LoraConfigBuilder loraDropout(double loraDropout) {
        this.loraDropout = loraDropout;
        return this;
    }

    public LoraConfigBuilder bias(BiasMode bias) {
        this.bias = bias;
        return this;
    }

    public LoraConfigBuilder modulesToSave(String... names) {
        return modulesToSave(Arrays.asList(names));
    }

    public LoraConfigBuilder modulesToSave(Collection<String> names) {
        this.modulesToSave = new ArrayList<>(names);
        return this;
    }

    public LoraConfigBuilder layersToTransform(int... indices) {
        return layersToTransform(Arrays.stream(indices).boxed().toList());
    }

    public LoraConfigBuilder layersToTransform(Collection<Integer> indices) {
        this.layersToTransform = new ArrayList<>(indices);
        return this;
    }

    public LoraConfigBuilder layersPattern(String... patterns) {
        return layersPattern(Arrays.asList(patterns));
    }

    public LoraConfigBuilder layersPattern(Collection<String> patterns) {
        this.layersPattern = new ArrayList<>(patterns);
        return this;
    }

    /** Ranks by pattern; the map's order is the order in which the patterns are tried. */
    public LoraConfigBuilder rankPattern(Map<String, Integer> rankPattern) {
        this.rankPattern = new LinkedHashMap<>(rankPattern);
        return this;
    }

    /** Alphas by pattern; the map's order is the order in which the patterns are tried. */
    public LoraConfigBuilder alphaPattern(Map<String, ? extends Number> alphaPattern) {
        Map<String, Double> copy = new LinkedHashMap<>();
        for (Map.Entry<String, ? extends @Nullable Number> entry : alphaPattern.entrySet()) {
            Number alpha = entry.getValue();
            copy.put(entry.getKey(), alpha == null ? Double.NaN : alpha.doubleValue());
        }
        this.alphaPattern = copy;
        return this;
    }

    public LoraConfigBuilder useRslora(boolean useRslora) {
        this.useRslora = useRslora;
        return this;
    }

    public LoraConfigBuilder fanInFanOut(boolean fanInFanOut) {
        this.fanInFanOut = fanInFanOut;
        return this;
    }

    public LoraConfigBuilder initLoraWeights(InitLoraWeights initLoraWeights) {
        this.initLoraWeights = initLoraWeights;
        return this;
    }

    public LoraConfigBuilder initLoraWeights(boolean value) {
        return initLoraWeights(InitLoraWeights.of(value));
    }

    public LoraConfigBuilder initLoraWeights(String name) {
        return initLoraWeights(InitLoraWeights.of(name));
    }

    public LoraConfigBuilder taskType(@Nullable TaskType taskType) {
        this.taskType = taskType;
        return this;
    }

    public LoraConfigBuilder baseModelNameOrPath(@Nullable String baseModelNameOrPath) {
        this.baseModelNameOrPath = baseModelNameOrPath;
        return this;
    }

    public LoraConfigBuilder revision(@Nullable String revision) {
        this.revision = revision;
        return this;
    }

    public LoraConfigBuilder inferenceMode(boolean inferenceMode) {
        this.inferenceMode = inferenceMode;
        return this;
    }

    public LoraConfigBuilder peftVersion(String peftVersion) {
        this.peftVersion = peftVersion;
        return this;
    }

    public LoraConfigBuilder useDora(boolean useDora) {
        return otherField("use_dora", useDora);
    }

    public LoraConfigBuilder loraBias(boolean loraBias) {
        return otherField("lora_bias", loraBias);
    }

    public LoraConfigBuilder ensureWeightTying(boolean ensureWeightTying) {
        return otherField("ensure_weight_tying", ensureWeightTying);
    }

    public LoraConfigBuilder invocationTokens(Collection<Integer> tokens) {
        return otherField("alora_invocation_tokens", List.copyOf(tokens));
    }

    /** Token ids by the name of the embedding module. */
    public LoraConfigBuilder trainableTokenIndices(Map<String, List<Integer>> idsByModule) {
        return otherField("trainable_token_indices", new LinkedHashMap<>(idsByModule));
    }

    public LoraConfigBuilder targetParameters(Collection<String> names) {
        return otherField("target_parameters", List.copyOf(names));
    }

    public LoraConfigBuilder targetParameters(String... names) {
        return targetParameters(Arrays.asList(names));
    }

    /** Ranges [first, end) of layer indices. */
    public LoraConfigBuilder layerReplication(List<List<Integer>> ranges) {
        return otherField("layer_replication", List.copyOf(ranges));
    }

    /**
     * Sets a field that has no setter of its own.
     *
     * @param key its name in {@code adapter_config.json}
     * @param value null, a Boolean, Number or String, or a List or Map of such
     */
    public LoraConfigBuilder otherField(String key, @Nullable Object value) {
        otherFields.put(key, value);
        return this;
    }

    /**
     * Whether to keep what PEFT 0.21 does not know and a later version may: fields, keys of nested objects,
     * initialisations. {@link LoraConfig#warnings()} names it then. Otherwise, as by default, it is an error. Set for
     * configurations that are read from files.
     */
    public LoraConfigBuilder keepUnknown(boolean keepUnknown) {
        this.keepUnknown = keepUnknown;
        return this;
    }

    /**
     * The configuration.
     *
     * @throws IllegalArgumentException naming field, value and rule of the first field that is wrong
     */
    public LoraConfig build() {
        return new LoraConfig(this);
    }
}
