package org.lora4j.config;

import java.math.BigInteger;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.TreeMap;
import org.jspecify.annotations.Nullable;

/** The keys of PEFT 0.21 that {@link LoraConfig} keeps as plain values: their defaults, their rules, what they ask for. */
final class OtherFields {
    private static final int MAX_DEPTH = 64;

    private static final Map<String, @Nullable Object> DEFAULTS = defaults();

    /**
     * Keys that change nothing by themselves: notes, and the settings of initialisations and of variants that another
     * key switches on.
     */
    private static final Set<String> HARMLESS = Set.of(
            "alora_invocation_tokens",
            "auto_mapping",
            "ensure_weight_tying",
            "lora_bias",
            "use_dora",
            "target_parameters",
            "trainable_token_indices",
            "corda_config",
            "eva_config",
            "layer_replication",
            "loftq_config",
            "lora_ga_config",
            "megatron_core",
            "qalora_group_size");

    /** Variants of the forward pass; PEFT 0.21 combines no two of them. */
    private static final List<String> VARIANTS = List.of(
            "alora_invocation_tokens",
            "arrow_config",
            "kasa_config",
            "monteclora_config",
            "use_bdlora",
            "use_dora",
            "velora_config");

    private static final Set<String> TYPED = Set.of(
            "base_model_name_or_path",
            "bias",
            "exclude_modules",
            "fan_in_fan_out",
            "inference_mode",
            "init_lora_weights",
            "layers_pattern",
            "layers_to_transform",
            "lora_alpha",
            "lora_dropout",
            "alpha_pattern",
            "modules_to_save",
            "peft_type",
            "peft_version",
            "r",
            "rank_pattern",
            "revision",
            "target_modules",
            "task_type",
            "use_rslora");

    private OtherFields() {}

    private static Map<String, @Nullable Object> defaults() {
        Map<String, @Nullable Object> d = new TreeMap<>();
        for (String key : List.of(
                "alora_invocation_tokens",
                "arrow_config",
                "auto_mapping",
                "corda_config",
                "eva_config",
                "kasa_config",
                "layer_replication",
                "lora_ga_config",
                "megatron_config",
                "monteclora_config",
                "target_parameters",
                "trainable_token_indices",
                "use_bdlora",
                "velora_config")) {
            d.put(key, null);
        }
        for (String key : List.of("ensure_weight_tying", "lora_bias", "use_dora", "use_qalora")) {
            d.put(key, false);
        }
        d.put("loftq_config", Map.of());
        d.put("megatron_core", "megatron.core");
        d.put("qalora_group_size", 16L);
        return d;
    }

    /**
     * The known keys with their defaults, replaced and followed by what was given, deeply immutable. The settings of two
     * initialisations are filled in by PEFT where they are missing, and so here.
     */
    static Map<String, @Nullable Object> complete(Map<String, @Nullable Object> given, InitLoraWeights init) {
        Map<String, @Nullable Object> all = new LinkedHashMap<>(DEFAULTS);
        given.forEach((key, value) -> {
            if (key == null || key.isBlank()) {
                throw Invalid.field("otherFields", key, "every key must be the name of a field");
            }
            if (TYPED.contains(key)) {
                throw Invalid.field(key, value, "has a setter of its own; use it instead of otherField");
            }
            Object frozen = freeze(key, value, 0);
            boolean nested = frozen instanceof Map && NestedConfigs.keys().contains(key);
            all.put(key, nested ? NestedConfigs.complete(key, (Map<?, ?>) frozen) : frozen);
        });
        String settings = missingSettings(all, init);
        if (settings != null) {
            all.put(settings, NestedConfigs.complete(settings, Map.of()));
        }
        return Collections.unmodifiableMap(all);
    }

    /** The key of the settings that an initialisation needs and has none of. */
    static @Nullable String missingSettings(Map<String, @Nullable Object> fields, InitLoraWeights init) {
        String key = switch (init.jsonValue().toString()) {
            case "eva" -> "eva_config";
            case "corda" -> "corda_config";
            default -> null;
        };
        return key == null || fields.get(key) != null ? null : key;
    }

    static Map<String, @Nullable Object> unknown(Map<String, @Nullable Object> fields) {
        Map<String, @Nullable Object> unknown = new LinkedHashMap<>(fields);
        unknown.keySet().removeAll(DEFAULTS.keySet());
        return Collections.unmodifiableMap(unknown);
    }

    static Map<String, @Nullable Object> unsupported(Map<String, @Nullable Object> fields) {
        Map<String, @Nullable Object> unsupported = new LinkedHashMap<>();
        DEFAULTS.forEach((key, otherwise) -> {
            Object value = fields.get(key);
            if (!HARMLESS.contains(key) && truthy(value) && !Objects.equals(value, otherwise)) {
                unsupported.put(key, value);
            }
        });
        return Collections.unmodifiableMap(unsupported);
    }

    /** A deep immutable copy in which equal numbers are equal objects. */
    private static @Nullable Object freeze(String key, @Nullable Object value, int depth) {
        if (depth > MAX_DEPTH) {
            throw Invalid.field(key, "...", "is nested deeper than " + MAX_DEPTH);
        }
        if (value == null || value instanceof Boolean || value instanceof String) {
            return value;
        }
        if (value instanceof Integer || value instanceof Long || value instanceof Short || value instanceof Byte) {
            return ((Number) value).longValue();
        }
        if (value instanceof BigInteger big) {
            return big.bitLength() < Long.SIZE ? (Object) big.longValue() : big;
        }
        if (value instanceof Double || value instanceof Float) {
            double number = ((Number) value).doubleValue();
            if (!Double.isFinite(number)) {
                throw Invalid.field(key, value, "must be a finite number");
            }
            return number;
        }
        if (value instanceof Iterable<?> items) {
            List<@Nullable Object> list = new ArrayList<>();
            for (Object item : items) {
                list.add(freeze(key, item, depth + 1));
            }
            return Collections.unmodifiableList(list);
        }
        if (value instanceof Map<?, ?> entries) {
            Map<String, @Nullable Object> map = new LinkedHashMap<>();
            entries.forEach((k, v) -> {
                if (!(k instanceof String name)) {
                    throw Invalid.field(key, value, "must have strings as keys");
                }
                map.put(name, freeze(key, v, depth + 1));
            });
            return Collections.unmodifiableMap(map);
        }
        throw Invalid.field(
                key, value, "is a " + value.getClass().getName() + "; use Boolean, Number, String, List or Map");
    }

    /** Python's truth of a value: not null, false, 0 or empty. */
    static boolean truthy(@Nullable Object value) {
        return !(value == null
                || value.equals(false)
                || value.equals(0L)
                || value.equals(0.0)
                || value.equals("")
                || value.equals(List.of())
                || value.equals(Map.of()));
    }

    /** The variants of the forward pass that fields and initialisation ask for. */
    private static List<String> variants(LoraConfig config) {
        List<String> variants = new ArrayList<>();
        for (String key : VARIANTS) {
            if (truthy(config.otherFields().get(key))) {
                variants.add(key);
            }
        }
        if (config.initLoraWeights().kind() == InitLoraWeights.Kind.MICA) {
            variants.add("initLoraWeights=mica");
        }
        return variants;
    }

    /**
     * The rules of PEFT for these keys, including those it checks only at injection.
     *
     * @return what is in the fields that PEFT does not know, by name, with what is wrong about it
     */
    static Map<String, String> check(LoraConfig config) {
        Map<String, @Nullable Object> fields = config.otherFields();
        Map<String, String> unknown = new LinkedHashMap<>();
        unknown(fields).keySet().forEach(key -> unknown.put(key, "is not a field of PEFT 0.21's LoraConfig"));
        OtherFieldTypes.check(fields);
        unknown.putAll(NestedConfigs.check(fields));
        boolean dora = truthy(fields.get("use_dora"));
        if (dora && truthy(fields.get("megatron_config"))) {
            throw Invalid.field("use_dora", true, "cannot be combined with megatron_config; set one of them");
        }
        InitLoraWeights init = config.initLoraWeights();
        if (truthy(fields.get("lora_bias"))) {
            if (init.jsonValue() instanceof String) {
                throw Invalid.field("lora_bias", true, "needs initLoraWeights true or false, but it is " + init);
            }
            if (dora) {
                throw Invalid.field("lora_bias", true, "cannot be combined with use_dora; set one of them");
            }
        }
        if (init.kind() == InitLoraWeights.Kind.LOFTQ && !truthy(fields.get("loftq_config"))) {
            throw Invalid.field("initLoraWeights", init, "needs loftq_config, such as {\"loftq_bits\": 4}");
        }
        List<String> variants = variants(config);
        if (variants.size() > 1) {
            throw Invalid.field("otherFields", variants, "are variants that exclude each other; keep one");
        }
        parameters(config, variants);
        tokens(config);
        return unknown;
    }

    /** What an adapter of a bare parameter cannot do. */
    private static void parameters(LoraConfig config, List<String> variants) {
        List<String> excluded = new ArrayList<>(variants);
        if (config.loraDropout() > 0) {
            excluded.add("loraDropout");
        }
        if (config.fanInFanOut()) {
            excluded.add("fanInFanOut");
        }
        if (config.loraBias()) {
            excluded.add("lora_bias");
        }
        if (!config.targetParameters().isEmpty() && !excluded.isEmpty()) {
            throw Invalid.field(
                    "target_parameters",
                    config.targetParameters(),
                    "cannot be combined with " + String.join(" and ", excluded)
                            + "; leave that out, or target modules instead");
        }
    }

    private static void tokens(LoraConfig config) {
        if (config.otherFields().get("trainable_token_indices") instanceof Map<?, ?> indices) {
            for (Object module : indices.keySet()) {
                if (config.modulesToSave().contains((String) module)) {
                    throw Invalid.field(
                            "trainable_token_indices",
                            indices,
                            "names " + module + ", which modulesToSave trains in full; name it in one of them");
                }
            }
        }
    }
}
