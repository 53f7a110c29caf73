package org.lora4j.config;

import java.util.Collections;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeMap;
import org.jspecify.annotations.Nullable;

/**
 * The modules an adapter targets when its configuration names none: PEFT's
 * {@code TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING}, by the {@code model_type} in a base model's
 * {@code config.json}.
 */
public final class DefaultTargets {
    /** Names of modules, then the model types that adapt those by default. */
    private static final String NAMES = """
            q_proj v_proj: bart gemma gemma2 gemma3_text gpt_neo gptj llama llama4 mistral mixtral opt qwen2 qwen3 stablelm
            query value: bert electra layoutlm roberta xlm-roberta
            query_key_value: RefinedWeb RefinedWebModel bloom chatglm falcon gpt_neox
            c_attn: gpt2 gpt_bigcode
            q v: mt5 t5
            q v q_proj v_proj: blip-2
            c_proj c_attn: btlm
            qkv_proj: codegen
            in_proj: deberta
            query_proj value_proj: deberta-v2
            Wqkv: mpt
            q_proj k_proj v_proj o_proj: nemotron_h
            q_proj v_proj fc1 fc2: phi
            key value receptance output: rwkv
            r_proj k_proj v_proj o_proj key value: rwkv7
            """;

    /** Model types whose targets are a regular expression. */
    private static final Map<String, String> REGEXES = Map.of("gemma4", ".*language_model\\..*\\.(q_proj|v_proj)");

    private static final Map<String, ModuleSelector> TABLE = table();

    private DefaultTargets() {}

    private static Map<String, ModuleSelector> table() {
        Map<String, ModuleSelector> table = new TreeMap<>();
        NAMES.lines().forEach(line -> {
            int colon = line.indexOf(": ");
            ModuleSelector targets =
                    ModuleSelector.names(line.substring(0, colon).split(" "));
            for (String modelType : line.substring(colon + 2).split(" ")) {
                table.put(modelType, targets);
            }
        });
        REGEXES.forEach((modelType, regex) -> table.put(modelType, ModuleSelector.regex(regex)));
        return Collections.unmodifiableMap(table);
    }

    /** The default targets of a model type, such as {@code llama}; empty for types PEFT has none for. */
    public static Optional<ModuleSelector> of(String modelType) {
        return Optional.ofNullable(TABLE.get(modelType));
    }

    /** The model types that have default targets, sorted. */
    public static Set<String> modelTypes() {
        return TABLE.keySet();
    }

    /**
     * The given configuration if it names targets, else one with those of the model type. As in PEFT the defaults apply
     * beside {@code targetParameters} too, and where the model type has none those alone are enough; to adapt
     * parameters only, set {@code targetModules} to no names.
     *
     * @param modelType the base model's, null if it has none
     * @throws IllegalArgumentException if there are neither targets nor defaults
     */
    public static LoraConfig resolve(LoraConfig config, @Nullable String modelType) {
        if (config.targetModules() != null) {
            return config;
        }
        ModuleSelector targets = modelType == null ? null : TABLE.get(modelType);
        if (targets != null) {
            return config.toBuilder().targetModules(targets).build();
        }
        if (config.targetParameters().isEmpty()) {
            throw Invalid.field(
                    "targetModules",
                    null,
                    modelType == null
                            ? "must be set for a model without a model type: name the modules to adapt"
                            : "has no default for models of type \"" + modelType + "\": name the modules to adapt;"
                                    + " there are defaults for " + String.join(", ", TABLE.keySet()));
        }
        return config;
    }
}
