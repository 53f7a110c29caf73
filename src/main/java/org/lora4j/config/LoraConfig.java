package org.lora4j.config;

import java.util.ArrayList;
import java.util.Collection;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.regex.Pattern;
import org.jspecify.annotations.Nullable;

/**
 * The configuration of one LoRA adapter: PEFT's {@code LoraConfig}, immutable, with the defaults of PEFT 0.21.
 *
 * <p>Building a wrong configuration fails with an {@link IllegalArgumentException} that names field, value and rule;
 * that includes what PEFT itself refuses only when it injects the adapter. Fields of PEFT this class has no accessor for
 * are kept as {@link #otherFields()}.
 *
 * <pre>{@code
 * LoraConfig config = LoraConfig.builder()
 *         .r(16)
 *         .loraAlpha(32)
 *         .targetModules("q_proj", "v_proj")
 *         .build();
 * }</pre>
 */
public final class LoraConfig {
    /** The version of PEFT whose file format and rules this class follows. */
    public static final String PEFT_VERSION = "0.21.0";

    /** {@code (.*\.)?(p)$}, as PEFT composes it, with the value for the paths it matches. */
    private record PathPattern<T>(Pattern regex, T value) {}

    private final int r;
    private final double loraAlpha;
    private final @Nullable ModuleSelector targetModules;
    private final @Nullable ModuleSelector excludeModules;
    private final double loraDropout;
    private final BiasMode bias;
    private final Set<String> modulesToSave;
    private final List<Integer> layersToTransform;
    private final List<String> layersPattern;
    private final Map<String, Integer> rankPattern;
    private final Map<String, Double> alphaPattern;
    private final boolean useRslora;
    private final boolean fanInFanOut;
    private final InitLoraWeights initLoraWeights;
    private final @Nullable TaskType taskType;
    private final @Nullable String baseModelNameOrPath;
    private final @Nullable String revision;
    private final boolean inferenceMode;
    private final String peftVersion;
    private final Map<String, @Nullable Object> otherFields;
    private final boolean keepUnknown;
    private final List<String> warnings;

    private final List<PathPattern<Integer>> ranks;
    private final List<PathPattern<Double>> alphas;

    LoraConfig(LoraConfigBuilder b) {
        LoraConfigRules.check(b);
        r = b.r;
        loraAlpha = b.loraAlpha;
        targetModules = b.targetModules;
        excludeModules = b.excludeModules;
        loraDropout = b.loraDropout;
        bias = b.bias;
        modulesToSave = Invalid.names("modulesToSave", b.modulesToSave);
        layersToTransform = List.copyOf(b.layersToTransform);
        layersPattern = List.copyOf(b.layersPattern);
        rankPattern = Collections.unmodifiableMap(new LinkedHashMap<>(b.rankPattern));
        alphaPattern = Collections.unmodifiableMap(new LinkedHashMap<>(b.alphaPattern));
        useRslora = b.useRslora;
        fanInFanOut = b.fanInFanOut;
        initLoraWeights = b.initLoraWeights;
        taskType = b.taskType;
        baseModelNameOrPath = b.baseModelNameOrPath;
        revision = b.revision;
        inferenceMode = b.inferenceMode;
        peftVersion = b.peftVersion;
        otherFields = OtherFields.complete(b.otherFields, b.initLoraWeights);
        keepUnknown = b.keepUnknown;
        warnings = LoraConfigWarnings.of(this, b, OtherFields.check(this));
        ranks = compile("rankPattern", rankPattern);
        alphas = compile("alphaPattern", alphaPattern);
    }

    /** A builder with PEFT's defaults: r = 8, loraAlpha = 8, no dropout, no bias. */
    public static LoraConfigBuilder builder() {
        return new LoraConfigBuilder();
    }

    /** A builder that starts from this configuration. */
    public LoraConfigBuilder toBuilder() {
        LoraConfigBuilder b = new LoraConfigBuilder();
        b.r = r;
        b.loraAlpha = loraAlpha;
        b.targetModules = targetModules;
        b.excludeModules = excludeModules;
        b.loraDropout = loraDropout;
        b.bias = bias;
        b.modulesToSave = modulesToSave;
        b.layersToTransform = layersToTransform;
        b.layersPattern = layersPattern;
        b.rankPattern = rankPattern;
        b.alphaPattern = alphaPattern;
        b.useRslora = useRslora;
        b.fanInFanOut = fanInFanOut;
        b.initLoraWeights = initLoraWeights;
        b.taskType = taskType;
        b.baseModelNameOrPath = baseModelNameOrPath;
        b.revision = revision;
        b.inferenceMode = inferenceMode;
        b.peftVersion = peftVersion;
        b.otherFields.putAll(otherFields);
        b.keepUnknown = keepUnknown;
        return b;
    }

    private static <T> List<PathPattern<T>> compile(String field, Map<String, T> patterns) {
        List<PathPattern<T>> compiled = new ArrayList<>();
        patterns.forEach(
                (regex, value) -> compiled.add(new PathPattern<>(Invalid.regex(field, regex, composed(regex)), value)));
        return List.copyOf(compiled);
    }

    private static <T> T first(List<PathPattern<T>> patterns, String path, T otherwise) {
        for (PathPattern<T> pattern : patterns) {
            if (pattern.regex().matcher(path).lookingAt()) {
                return pattern.value();
            }
        }
        return otherwise;
    }

    /**
     * The rank at a module: the first entry of {@link #rankPattern()} that matches its path or, failing that, is
     * its path to the letter; else {@link #r()}.
     */
    public int rankFor(String path) {
        return first(ranks, path, rankPattern.getOrDefault(path, r));
    }

    /** Alpha at a module: the first entry of {@link #alphaPattern()} that matches its path, else {@link #loraAlpha()}. */
    public double alphaFor(String path) {
        return first(alphas, path, alphaPattern.getOrDefault(path, loraAlpha));
    }

    /** The keys of {@link #rankPattern()} and {@link #alphaPattern()} that match none of the paths, so have no effect. */
    public Set<String> unmatchedPatterns(Collection<String> paths) {
        Set<String> unmatched = new LinkedHashSet<>(rankPattern.keySet());
        unmatched.addAll(alphaPattern.keySet());
        unmatched.removeIf(key -> {
            Pattern pattern = Invalid.regex("rankPattern", key, composed(key));
            return paths.stream()
                    .anyMatch(path -> path.equals(key) || pattern.matcher(path).lookingAt());
        });
        return unmatched;
    }

    private static String composed(String regex) {
        return "(.*\\.)?(" + regex + ")$";
    }

    /**
     * The factor of the product BA at a module: alpha / r, or alpha / sqrt(r) with {@link #useRslora()}
     * (arXiv:2312.03732).
     */
    public double scale(String path) {
        double rank = rankFor(path);
        return alphaFor(path) / (useRslora ? Math.sqrt(rank) : rank);
    }

    /** The rank of the factors, at least 1. */
    public int r() {
        return r;
    }

    /** The numerator of the scale. */
    public double loraAlpha() {
        return loraAlpha;
    }

    /** The modules that get an adapter; null means the usual ones of the model's architecture. */
    public @Nullable ModuleSelector targetModules() {
        return targetModules;
    }

    /** Modules that get no adapter although {@link #targetModules()} selects them. */
    public @Nullable ModuleSelector excludeModules() {
        return excludeModules;
    }

    /** The probability that an element of the adapter's input is dropped in training, in [0, 1]. */
    public double loraDropout() {
        return loraDropout;
    }

    /** Which biases of the base model train. */
    public BiasMode bias() {
        return bias;
    }

    /** Names of modules that are copied, trained in full and saved with the adapter. */
    public Set<String> modulesToSave() {
        return modulesToSave;
    }

    /** Indices of the layers that get an adapter; empty means all. */
    public List<Integer> layersToTransform() {
        return layersToTransform;
    }

    /** Regular expressions for the name before a layer's index, such as {@code layers}; empty means any name. */
    public List<String> layersPattern() {
        return layersPattern;
    }

    /** Regular expressions for the end of a path, with the rank there, in the order they are tried. */
    public Map<String, Integer> rankPattern() {
        return rankPattern;
    }

    /** Regular expressions for the end of a path, with alpha there, in the order they are tried. */
    public Map<String, Double> alphaPattern() {
        return alphaPattern;
    }

    /** Whether the scale is alpha / sqrt(r). */
    public boolean useRslora() {
        return useRslora;
    }

    /** Whether the weight of a linear layer is stored as (in, out). */
    public boolean fanInFanOut() {
        return fanInFanOut;
    }

    public InitLoraWeights initLoraWeights() {
        return initLoraWeights;
    }

    public @Nullable TaskType taskType() {
        return taskType;
    }

    public @Nullable String baseModelNameOrPath() {
        return baseModelNameOrPath;
    }

    /** The revision of the base model. */
    public @Nullable String revision() {
        return revision;
    }

    /** Whether the adapter is for inference only; PEFT writes true in every file it saves. */
    public boolean inferenceMode() {
        return inferenceMode;
    }

    /** The version of PEFT that wrote the configuration, or {@link #PEFT_VERSION}. */
    public String peftVersion() {
        return peftVersion;
    }

    /** Whether weights are split into magnitude and direction: DoRA, arXiv:2402.09353. */
    public boolean useDora() {
        return flag("use_dora");
    }

    /** Whether B has a trained bias of its own. */
    public boolean loraBias() {
        return flag("lora_bias");
    }

    /** Whether modules tied to an adapted or saved one, as the output layer to the embedding, follow it. */
    public boolean ensureWeightTying() {
        return flag("ensure_weight_tying");
    }

    /** The tokens from which on an activated LoRA applies (arXiv:2504.12397); empty for other adapters. */
    public List<Integer> invocationTokens() {
        return integers(otherFields.get("alora_invocation_tokens"));
    }

    /**
     * The token ids whose rows train in full, by the name of the embedding module. A list without a name in the file
     * stands under {@code embed_tokens}, PEFT's default.
     */
    public Map<String, List<Integer>> trainableTokenIndices() {
        Map<String, List<Integer>> byModule = new LinkedHashMap<>();
        Object given = otherFields.get("trainable_token_indices");
        if (given instanceof Map<?, ?> map) {
            map.forEach((module, ids) -> byModule.put((String) module, integers(ids)));
        } else if (given instanceof List<?>) {
            byModule.put("embed_tokens", integers(given));
        }
        return Collections.unmodifiableMap(byModule);
    }

    /** Parameters, such as the stacked experts of a mixture, that get an adapter each: ends of their paths. */
    public List<String> targetParameters() {
        return otherFields.get("target_parameters") instanceof List<?> names
                ? names.stream().map(String.class::cast).toList()
                : List.of();
    }

    /** The ranges [first, end) of the base model's layers that form the layers of the adapted model; empty for all. */
    public List<List<Integer>> layerReplication() {
        return otherFields.get("layer_replication") instanceof List<?> ranges
                ? ranges.stream().map(LoraConfig::integers).toList()
                : List.of();
    }

    /**
     * The settings of an initialisation or variant, such as {@code eva_config}, with PEFT's default for each that was left
     * out; empty if there are none.
     */
    public Map<String, @Nullable Object> settings(String key) {
        if (!(otherFields.get(key) instanceof Map<?, ?> map)) {
            return Map.of();
        }
        Map<String, @Nullable Object> settings = new LinkedHashMap<>();
        map.forEach((name, value) -> settings.put((String) name, value));
        return settings;
    }

    private boolean flag(String key) {
        return Boolean.TRUE.equals(otherFields.get(key));
    }

    private static List<Integer> integers(@Nullable Object list) {
        return list instanceof List<?> numbers
                ? numbers.stream()
                        .map(n -> Math.toIntExact(((Number) n).longValue()))
                        .toList()
                : List.of();
    }

    /**
     * All other keys of {@code adapter_config.json}, by their name in the file: first those of PEFT 0.21, with PEFT's
     * default where none was given, then unknown ones. Values are null, Boolean, Long, java.math.BigInteger, Double,
     * String, List or Map.
     */
    public Map<String, @Nullable Object> otherFields() {
        return otherFields;
    }

    /**
     * Those of {@link #otherFields()} that ask for something this version does not do, such as {@code use_dora}. An
     * adapter with any of them must not be injected: it would compute something else.
     */
    public Map<String, @Nullable Object> nonDefaultUnsupported() {
        return OtherFields.unsupported(otherFields);
    }

    /** Those of {@link #otherFields()} that PEFT 0.21 does not know. They are kept, and mean nothing here. */
    public Map<String, @Nullable Object> unknownFields() {
        return OtherFields.unknown(otherFields);
    }

    /**
     * What is legal and perhaps not meant, in one sentence each: what PEFT warns of when it makes a {@code LoraConfig}, and
     * what PEFT 0.21 does not know, which is kept and has no effect.
     */
    public List<String> warnings() {
        return warnings;
    }

    private List<@Nullable Object> values() {
        List<@Nullable Object> values = new ArrayList<>(List.of(r, loraAlpha, loraDropout, bias, modulesToSave));
        Collections.addAll(values, layersToTransform, layersPattern, useRslora, fanInFanOut, initLoraWeights);
        Collections.addAll(values, targetModules, excludeModules, taskType, baseModelNameOrPath, revision);
        Collections.addAll(values, inferenceMode, peftVersion, otherFields);
        // As lists of entries: which pattern comes first decides.
        Collections.addAll(values, List.copyOf(rankPattern.entrySet()), List.copyOf(alphaPattern.entrySet()));
        return values;
    }

    @Override
    public boolean equals(@Nullable Object other) {
        return other instanceof LoraConfig config && values().equals(config.values());
    }

    @Override
    public int hashCode() {
        return Objects.hashCode(values());
    }

    /** The rank, alpha and targets, then every field that differs from its default. */
    @Override
    public String toString() {
        return LoraConfigRules.describe(this);
    }
}
