package org.lora4j.config;

import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.function.Predicate;
import org.jspecify.annotations.Nullable;

/**
 * The objects inside a configuration, such as {@code eva_config}: the keys of each with PEFT's default and rule. As in
 * PEFT an object that is given has all its keys, those left out with their default; and an empty one is not none.
 */
final class NestedConfigs {
    /**
     * One key of a nested object.
     *
     * @param rule what a value must satisfy, and {@code text} the same in words
     * @param later whether PEFT asks only where the value is used, so that a file may hold one of a later version
     */
    private record Key(@Nullable Object otherwise, Predicate<@Nullable Object> rule, String text, boolean later) {
        Key(@Nullable Object otherwise, Predicate<@Nullable Object> rule, String text) {
            this(otherwise, rule, text, false);
        }
    }

    private static final Map<String, Map<String, Key>> ALL = all();

    private NestedConfigs() {}

    private static Map<String, Map<String, Key>> all() {
        Map<String, Map<String, Key>> all = new TreeMap<>();
        all.put(
                "arrow_config",
                Map.of(
                        "gks_adapter_names", names(),
                        "rng_seed",
                                new Key(null, v -> v == null || v instanceof Long, "must be a whole number or null"),
                        "router_temperature", above0(1.0),
                        "task_adapter_names", names(),
                        "top_k", count(3),
                        "use_gks", flag(false)));
        all.put(
                "corda_config",
                Map.of(
                        "cache_file", text(),
                        "corda_method", oneOf(true, "ipm", "ipm", "kpm"),
                        "covariance_file", text(),
                        "prune_temporary_fields", flag(true),
                        "use_float16_for_covariance", flag(false),
                        "verbose", flag(false)));
        all.put(
                "eva_config",
                Map.of(
                        "adjust_scaling_factors",
                        flag(true),
                        "label_mask_value",
                        new Key(-100L, v -> v instanceof Long, "must be a whole number"),
                        "rho",
                        new Key(2.0, v -> number(v) >= 1, "must be at least 1"),
                        "tau",
                        new Key(0.99, v -> number(v) >= 0 && number(v) <= 1, "must be between 0 and 1"),
                        "use_label_mask",
                        flag(true),
                        "whiten",
                        flag(false)));
        all.put("kasa_config", Map.of("beta", atLeast0(1e-4), "gamma", atLeast0(1e-3)));
        all.put(
                "lora_ga_config",
                Map.of(
                        "direction", oneOf(true, "ArB2r", "ArBr", "A2rBr", "ArB2r", "random"),
                        "scale", oneOf(true, "stable", "stable", "weight_svd", "gd_scale", "unit"),
                        "stable_gamma", above0(16L)));
        all.put(
                "monteclora_config",
                Map.of(
                        "buffer_size", count(150),
                        "dirichlet_prior", above0(0.1),
                        "kl_loss_weight", number(1e-5),
                        "num_samples", count(8),
                        "sample_scaler", number(1e-4),
                        "use_entropy", flag(false)));
        all.put(
                "use_bdlora",
                Map.of(
                        "match_strict", flag(true),
                        "nblocks", count(1),
                        "target_modules_bd_a", names(),
                        "target_modules_bd_b", names()));
        all.put(
                "velora_config",
                Map.of(
                        "init_type", oneOf(false, "batch_average", "batch_average", "batch_average_once", "random"),
                        "num_groups", count(64),
                        "scale", above0(1.0)));
        return all;
    }

    private static Key flag(boolean otherwise) {
        return new Key(otherwise, v -> v instanceof Boolean, "must be true or false");
    }

    private static Key count(long otherwise) {
        return new Key(otherwise, v -> v instanceof Long n && n > 0, "must be a whole number above 0");
    }

    private static Key above0(Number otherwise) {
        return new Key(otherwise, v -> number(v) > 0, "must be a number above 0");
    }

    private static Key atLeast0(double otherwise) {
        return new Key(otherwise, v -> number(v) >= 0, "must be a number of at least 0");
    }

    private static Key number(double otherwise) {
        return new Key(otherwise, v -> v instanceof Number, "must be a number");
    }

    private static Key text() {
        return new Key(null, v -> v == null || v instanceof String, "must be a string or null");
    }

    private static Key names() {
        return new Key(
                null,
                v -> v == null || (v instanceof List<?> list && list.stream().allMatch(n -> n instanceof String)),
                "must be a list of names or null");
    }

    private static Key oneOf(boolean later, String otherwise, String... values) {
        List<String> allowed = List.of(values);
        return new Key(
                otherwise, v -> v instanceof String s && allowed.contains(s), "must be one of " + allowed, later);
    }

    /** NaN, which no comparison holds for, if it is not a number. */
    private static double number(@Nullable Object value) {
        return value instanceof Number n ? n.doubleValue() : Double.NaN;
    }

    /** The keys of a configuration that hold objects with keys of their own. */
    static Set<String> keys() {
        return ALL.keySet();
    }

    /** The object with every key it does not have set to its default; those PEFT does not know last. */
    static Map<String, @Nullable Object> complete(String key, Map<?, ?> given) {
        Map<String, @Nullable Object> complete = new LinkedHashMap<>();
        new TreeMap<>(ALL.getOrDefault(key, Map.of())).forEach((name, rule) -> complete.put(name, rule.otherwise));
        given.forEach((name, value) -> complete.put((String) name, value));
        return Collections.unmodifiableMap(complete);
    }

    /**
     * Checks the objects among the fields, and returns what is in them that PEFT does not know, as {@code eva_config.x},
     * with what is wrong about it.
     */
    static Map<String, String> check(Map<String, @Nullable Object> fields) {
        Map<String, String> unknown = new LinkedHashMap<>();
        ALL.forEach((key, rules) -> {
            Object value = fields.get(key);
            if (value != null && !(value instanceof Map)) {
                throw Invalid.field(key, value, "must be an object or null");
            }
            if (value instanceof Map<?, ?> settings) {
                settings.forEach((name, setting) -> {
                    String path = key + "." + name;
                    Key rule = rules.get((String) name);
                    if (rule == null) {
                        unknown.put(
                                path,
                                "is not a key of PEFT 0.21's " + key + ", which has " + new TreeSet<>(rules.keySet()));
                    } else if (!rule.rule.test(setting)) {
                        if (!rule.later) {
                            throw Invalid.field(path, setting, rule.text);
                        }
                        unknown.put(path, rule.text);
                    }
                });
            }
        });
        overlap(fields);
        return unknown;
    }

    private static void overlap(Map<String, @Nullable Object> fields) {
        if (fields.get("use_bdlora") instanceof Map<?, ?> settings
                && settings.get("target_modules_bd_a") instanceof List<?> a
                && settings.get("target_modules_bd_b") instanceof List<?> b) {
            List<Object> both = new ArrayList<>(a);
            both.retainAll(b);
            if (!both.isEmpty()) {
                throw Invalid.field(
                        "use_bdlora",
                        settings,
                        "names " + both + " in both target_modules_bd_a and target_modules_bd_b; keep it in one");
            }
        }
    }
}
