package org.lora4j.config;

import java.math.BigInteger;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.function.DoublePredicate;
import org.jspecify.annotations.Nullable;

/** The form each plain field of {@link OtherFields} must have. */
final class OtherFieldTypes {
    private OtherFieldTypes() {}

    static void check(Map<String, @Nullable Object> fields) {
        for (String key : List.of("ensure_weight_tying", "lora_bias", "use_dora", "use_qalora")) {
            Object flag = fields.get(key);
            require(fields, key, flag == null || flag instanceof Boolean, "must be true or false");
        }
        for (String key : List.of(
                "arrow_config",
                "auto_mapping",
                "corda_config",
                "eva_config",
                "kasa_config",
                "loftq_config",
                "lora_ga_config",
                "megatron_config",
                "monteclora_config",
                "velora_config")) {
            Object value = fields.get(key);
            require(fields, key, value == null || value instanceof Map, "must be an object or null");
        }
        Object megatron = fields.get("megatron_core");
        require(
                fields,
                "megatron_core",
                megatron == null || (megatron instanceof String s && s.startsWith("megatron.")),
                "must start with \"megatron.\"");
        require(
                fields,
                "qalora_group_size",
                isIndex(fields.get("qalora_group_size")) && !Long.valueOf(0).equals(fields.get("qalora_group_size")),
                "must be a whole number of at least 1");
        Object parameters = fields.get("target_parameters");
        require(
                fields,
                "target_parameters",
                parameters == null || isListOf(parameters, v -> v instanceof String s && !s.isBlank()),
                "must be a list of names or null");
        tokens(fields);
        settings(fields);
    }

    private static void tokens(Map<String, @Nullable Object> fields) {
        Object invocation = fields.get("alora_invocation_tokens");
        require(
                fields,
                "alora_invocation_tokens",
                invocation == null || isListOf(invocation, OtherFieldTypes::isIndex),
                "must be a list of token ids or null");
        Object trainable = fields.get("trainable_token_indices");
        boolean wellFormed = trainable == null || isListOf(trainable, OtherFieldTypes::isIndex);
        if (trainable instanceof Map<?, ?> byModule) {
            wellFormed = byModule.values().stream().allMatch(v -> isListOf(v, OtherFieldTypes::isIndex));
        }
        require(
                fields,
                "trainable_token_indices",
                wellFormed,
                "must be a list of token ids, an object from module names to such lists, or null");
        Object replication = fields.get("layer_replication");
        require(
                fields,
                "layer_replication",
                replication == null
                        || isListOf(
                                replication,
                                v -> v instanceof List<?> range
                                        && range.size() == 2
                                        && isListOf(range, OtherFieldTypes::isIndex)),
                "must be a list of [first, end) pairs of layer indices, or null");
    }

    private static void settings(Map<String, @Nullable Object> fields) {
        number(fields, "eva_config", "rho", v -> v >= 1, "at least 1");
        number(fields, "eva_config", "tau", v -> v >= 0 && v <= 1, "between 0 and 1");
        for (String name : List.of("num_groups", "scale")) {
            number(fields, "velora_config", name, v -> v > 0, "above 0");
        }
        for (String name : List.of("num_samples", "dirichlet_prior", "buffer_size")) {
            number(fields, "monteclora_config", name, v -> v > 0, "above 0");
        }
        for (String name : List.of("top_k", "router_temperature")) {
            number(fields, "arrow_config", name, v -> v > 0, "above 0");
        }
        for (String name : List.of("beta", "gamma")) {
            number(fields, "kasa_config", name, v -> v >= 0, "at least 0");
        }
        Object blocks = fields.get("use_bdlora");
        require(
                fields,
                "use_bdlora",
                blocks == null || blocks instanceof Boolean || blocks instanceof Map,
                "must be an object or null");
        if (blocks instanceof Map<?, ?> settings
                && settings.get("target_modules_bd_a") instanceof List<?> a
                && settings.get("target_modules_bd_b") instanceof List<?> b) {
            require(
                    fields,
                    "use_bdlora",
                    Collections.disjoint(a, b),
                    "names a module in both target_modules_bd_a and target_modules_bd_b; keep it in one");
        }
    }

    /** Checks {@code key.name} if it is given. */
    private static void number(
            Map<String, @Nullable Object> fields, String key, String name, DoublePredicate rule, String text) {
        if (fields.get(key) instanceof Map<?, ?> settings && settings.containsKey(name)) {
            Object value = settings.get(name);
            if (!(value instanceof Number n && rule.test(n.doubleValue()))) {
                throw Invalid.field(key + "." + name, value, "must be " + text);
            }
        }
    }

    private static boolean isIndex(@Nullable Object value) {
        return value instanceof Long n ? n >= 0 : value instanceof BigInteger big && big.signum() >= 0;
    }

    private static boolean isListOf(@Nullable Object value, java.util.function.Predicate<@Nullable Object> rule) {
        return value instanceof List<?> list && list.stream().allMatch(rule);
    }

    private static void require(Map<String, @Nullable Object> fields, String key, boolean holds, String rule) {
        if (!holds) {
            throw Invalid.field(key, fields.get(key), rule);
        }
    }
}
