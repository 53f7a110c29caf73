package org.lora4j.config;

import java.math.BigInteger;
import java.util.List;
import java.util.Map;
import java.util.function.Predicate;
import org.jspecify.annotations.Nullable;

/** The form each plain field of {@link OtherFields} must have. */
final class OtherFieldTypes {
    private OtherFieldTypes() {}

    static void check(Map<String, @Nullable Object> fields) {
        for (String key : List.of("ensure_weight_tying", "lora_bias", "use_dora", "use_qalora")) {
            Object flag = fields.get(key);
            require(fields, key, flag == null || flag instanceof Boolean, "must be true or false");
        }
        for (String key : List.of("auto_mapping", "loftq_config", "megatron_config")) {
            Object value = fields.get(key);
            require(fields, key, value == null || value instanceof Map, "must be an object or null");
        }
        Object megatron = fields.get("megatron_core");
        boolean used = OtherFields.truthy(fields.get("megatron_config"));
        require(
                fields,
                "megatron_core",
                megatron instanceof String s ? !used || s.startsWith("megatron.") : megatron == null && !used,
                "must be a string, and with megatron_config start with \"megatron.\"");
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

    private static boolean isIndex(@Nullable Object value) {
        return value instanceof Long n ? n >= 0 : value instanceof BigInteger big && big.signum() >= 0;
    }

    private static boolean isListOf(@Nullable Object value, Predicate<@Nullable Object> rule) {
        return value instanceof List<?> list && list.stream().allMatch(rule);
    }

    private static void require(Map<String, @Nullable Object> fields, String key, boolean holds, String rule) {
        if (!holds) {
            throw Invalid.field(key, fields.get(key), rule);
        }
    }
}
