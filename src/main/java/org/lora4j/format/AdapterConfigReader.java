package org.lora4j.format;

import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.BiasMode;
import org.lora4j.config.InitLoraWeights;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.LoraConfigBuilder;
import org.lora4j.config.ModuleSelector;
import org.lora4j.config.TaskType;

/** Turns the entries of an {@code adapter_config.json} into a {@link LoraConfig}; takes each key away as it is read. */
final class AdapterConfigReader {
    static final String PEFT_TYPE = "LORA";

    private final Map<String, @Nullable Object> json;
    private final String source;

    private AdapterConfigReader(Map<String, @Nullable Object> json, String source) {
        this.json = new LinkedHashMap<>(json);
        this.source = source;
    }

    static LoraConfig config(Map<String, @Nullable Object> json, String source) throws FormatException {
        return new AdapterConfigReader(json, source).config();
    }

    private LoraConfig config() throws FormatException {
        Object type = json.remove("peft_type");
        if (!PEFT_TYPE.equals(type)) {
            throw wrong("peft_type", type, "only \"LORA\" is read; use an adapter that PEFT saved from a LoraConfig");
        }
        LoraConfigBuilder b = LoraConfig.builder().keepUnknown(true);
        try {
            if (json.containsKey("r")) {
                b.r(integer("r", json.remove("r")));
            }
            if (json.containsKey("lora_alpha")) {
                b.loraAlpha(number("lora_alpha", json.remove("lora_alpha")));
            }
            if (json.containsKey("lora_dropout")) {
                b.loraDropout(number("lora_dropout", json.remove("lora_dropout")));
            }
            b.targetModules(selector("target_modules"));
            b.excludeModules(selector("exclude_modules"));
            b.modulesToSave(names("modules_to_save", json.remove("modules_to_save")));
            layers(b);
            patterns(b);
            b.useRslora(flag("use_rslora"));
            b.fanInFanOut(flag("fan_in_fan_out"));
            b.inferenceMode(flag("inference_mode"));
            enums(b);
            b.baseModelNameOrPath(string("base_model_name_or_path"));
            b.revision(string("revision"));
            String version = string("peft_version");
            if (version != null) {
                b.peftVersion(version);
            }
            json.forEach(b::otherField);
            return b.build();
        } catch (IllegalArgumentException e) {
            throw new FormatException(source + ": " + e.getMessage(), e);
        }
    }

    private void layers(LoraConfigBuilder b) throws FormatException {
        Object indices = json.remove("layers_to_transform");
        if (indices instanceof List<?> list) {
            int[] layers = new int[list.size()];
            for (int i = 0; i < layers.length; i++) {
                layers[i] = integer("layers_to_transform", list.get(i));
            }
            b.layersToTransform(layers);
        } else if (indices != null) {
            b.layersToTransform(integer("layers_to_transform", indices));
        }
        Object patterns = json.remove("layers_pattern");
        if (patterns instanceof String pattern) {
            b.layersPattern(pattern.isEmpty() ? Set.of() : Set.of(pattern));
        } else {
            b.layersPattern(names("layers_pattern", patterns));
        }
    }

    private void patterns(LoraConfigBuilder b) throws FormatException {
        Map<String, Integer> ranks = new LinkedHashMap<>();
        for (Map.Entry<?, ?> entry : object("rank_pattern").entrySet()) {
            ranks.put((String) entry.getKey(), integer("rank_pattern." + entry.getKey(), entry.getValue()));
        }
        Map<String, Double> alphas = new LinkedHashMap<>();
        for (Map.Entry<?, ?> entry : object("alpha_pattern").entrySet()) {
            alphas.put((String) entry.getKey(), number("alpha_pattern." + entry.getKey(), entry.getValue()));
        }
        b.rankPattern(ranks).alphaPattern(alphas);
    }

    private void enums(LoraConfigBuilder b) throws FormatException {
        if (json.containsKey("bias")) {
            Object bias = json.remove("bias");
            BiasMode mode = null;
            for (BiasMode candidate : BiasMode.values()) {
                mode = candidate.jsonName().equals(bias) ? candidate : mode;
            }
            if (mode == null) {
                throw wrong("bias", bias, "must be \"none\", \"all\" or \"lora_only\"");
            }
            b.bias(mode);
        }
        Object task = json.remove("task_type");
        if (task != null) {
            TaskType type = null;
            for (TaskType candidate : TaskType.values()) {
                type = candidate.name().equals(task) ? candidate : type;
            }
            if (type == null) {
                throw wrong("task_type", task, "must be null or one of " + Arrays.toString(TaskType.values()));
            }
            b.taskType(type);
        }
        if (json.containsKey("init_lora_weights")) {
            Object init = json.remove("init_lora_weights");
            if (init instanceof String name) {
                b.initLoraWeights(InitLoraWeights.of(name));
            } else if (init == null || init instanceof Boolean) {
                // Python takes null for false.
                b.initLoraWeights(Boolean.TRUE.equals(init));
            } else {
                throw wrong("init_lora_weights", init, "must be true, false or a name");
            }
        }
    }

    private @Nullable ModuleSelector selector(String key) throws FormatException {
        Object value = json.remove(key);
        if (value == null || value.equals("") && key.equals("exclude_modules")) {
            return null; // PEFT takes an empty string to exclude nothing.
        }
        if (value instanceof String regex) {
            boolean target = key.equals("target_modules");
            boolean allLinear = regex.toLowerCase(Locale.ROOT).equals(ModuleSelector.ALL_LINEAR);
            return target && allLinear ? ModuleSelector.allLinear() : ModuleSelector.regex(regex);
        }
        return ModuleSelector.names(names(key, value));
    }

    private Set<String> names(String key, @Nullable Object value) throws FormatException {
        Set<String> names = new LinkedHashSet<>();
        if (value == null) {
            return names;
        }
        if (!(value instanceof List<?> list)) {
            throw wrong(key, value, "must be a list of strings or null");
        }
        for (Object item : list) {
            if (!(item instanceof String name)) {
                throw wrong(key, value, "must be a list of strings or null");
            }
            names.add(name);
        }
        return names;
    }

    private Map<?, ?> object(String key) throws FormatException {
        Object value = json.remove(key);
        if (value == null) {
            return Map.of();
        }
        if (!(value instanceof Map<?, ?> object)) {
            throw wrong(key, value, "must be an object from patterns to numbers");
        }
        return object;
    }

    private int integer(String key, @Nullable Object value) throws FormatException {
        if (!(value instanceof Long number) || number != number.intValue()) {
            throw wrong(key, value, "must be a whole number below 2^31");
        }
        return number.intValue();
    }

    private double number(String key, @Nullable Object value) throws FormatException {
        if (!(value instanceof Number number)) {
            throw wrong(key, value, "must be a number");
        }
        return number.doubleValue();
    }

    /** Python takes null for false. */
    private boolean flag(String key) throws FormatException {
        Object value = json.remove(key);
        if (value != null && !(value instanceof Boolean)) {
            throw wrong(key, value, "must be true or false");
        }
        return Boolean.TRUE.equals(value);
    }

    private @Nullable String string(String key) throws FormatException {
        Object value = json.remove(key);
        if (value != null && !(value instanceof String)) {
            throw wrong(key, value, "must be a string or null");
        }
        return (String) value;
    }

    private FormatException wrong(String key, @Nullable Object value, String rule) {
        String text = value instanceof String ? "\"" + value + "\"" : String.valueOf(value);
        return new FormatException(source + ": " + key + " = " + SafetensorsHeader.shorten(text) + ": " + rule);
    }
}
