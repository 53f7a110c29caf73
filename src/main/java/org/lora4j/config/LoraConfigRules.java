package org.lora4j.config;

import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/** What the fields of a {@link LoraConfig} must satisfy, and how it prints itself. */
final class LoraConfigRules {
    private LoraConfigRules() {}

    static void check(LoraConfigBuilder b) {
        if (b.r < 1) {
            throw Invalid.field("r", b.r, "must be at least 1");
        }
        if (!Double.isFinite(b.loraAlpha)) {
            throw Invalid.field("loraAlpha", b.loraAlpha, "must be a finite number, such as twice r");
        }
        if (!(b.loraDropout >= 0 && b.loraDropout <= 1)) {
            throw Invalid.field("loraDropout", b.loraDropout, "must be between 0 and 1");
        }
        present("bias", b.bias);
        present("initLoraWeights", b.initLoraWeights);
        present("peftVersion", b.peftVersion);
        selector("targetModules", b.targetModules);
        selector("excludeModules", b.excludeModules);
        if (b.excludeModules instanceof ModuleSelector.AllLinear) {
            throw Invalid.field("excludeModules", b.excludeModules, "must be names or a regular expression");
        }
        // PEFT composes its rule for these names without quoting them.
        for (String name : Invalid.names("modulesToSave", b.modulesToSave)) {
            Invalid.regex("modulesToSave", name, "(^|.*\\.)" + name + "($|\\..*)");
        }
        layers(b);
        for (Map.Entry<String, @Nullable Integer> entry : b.rankPattern.entrySet()) {
            Integer rank = entry.getValue();
            if (rank == null || rank < 1) {
                throw Invalid.field("rankPattern", entry, "every rank must be at least 1");
            }
            pattern("rankPattern", entry.getKey());
        }
        for (Map.Entry<String, Double> entry : b.alphaPattern.entrySet()) {
            if (!Double.isFinite(entry.getValue())) {
                throw Invalid.field("alphaPattern", entry, "every alpha must be a finite number");
            }
            pattern("alphaPattern", entry.getKey());
        }
    }

    private static void present(String field, @Nullable Object value) {
        if (value == null) {
            throw Invalid.field(field, null, "must be set; leave the setter out to get PEFT's default");
        }
    }

    private static void pattern(String field, @Nullable String regex) {
        if (regex == null || regex.isBlank()) {
            throw Invalid.field(field, regex, "every pattern must name a module");
        }
    }

    private static void selector(String field, @Nullable ModuleSelector selector) {
        if (selector instanceof ModuleSelector.Names names) {
            for (String name : Invalid.names(field, names.names())) {
                if (name.toLowerCase(Locale.ROOT).equals(ModuleSelector.ALL_LINEAR)) {
                    throw Invalid.field(
                            field,
                            names,
                            "\"all-linear\" is not the name of a module; pass ModuleSelector.allLinear(), or in a file "
                                    + "the string and not a list");
                }
            }
        } else if (selector instanceof ModuleSelector.Regex regex) {
            if (regex.regex().isBlank()) {
                throw Invalid.field(field, regex.regex(), "is an empty regular expression, which matches no module");
            }
            Invalid.regex(field, regex.regex());
        }
    }

    private static void layers(LoraConfigBuilder b) {
        for (Integer index : b.layersToTransform) {
            if (index == null || index < 0) {
                throw Invalid.field("layersToTransform", b.layersToTransform, "every index must be at least 0");
            }
        }
        for (String regex : Invalid.names("layersPattern", b.layersPattern)) {
            Invalid.regex("layersPattern", regex, "(?:^|.*?\\.)" + regex + "\\.(?P<idx>\\d+)\\.");
        }
        boolean byNames = b.targetModules == null || b.targetModules instanceof ModuleSelector.Names;
        if (!b.layersToTransform.isEmpty() && !byNames) {
            throw Invalid.field(
                    "layersToTransform",
                    b.layersToTransform,
                    "needs targetModules given as names, but they are " + b.targetModules
                            + "; put the indices into the regular expression");
        }
        if (!b.layersPattern.isEmpty() && !byNames) {
            throw Invalid.field(
                    "layersPattern",
                    b.layersPattern,
                    "needs targetModules given as names, but they are " + b.targetModules);
        }
        if (!b.layersPattern.isEmpty() && b.layersToTransform.isEmpty()) {
            throw Invalid.field("layersPattern", b.layersPattern, "needs layersToTransform to be set as well");
        }
    }

    static String describe(LoraConfig c) {
        LoraConfig d = LoraConfig.builder().build();
        List<String> parts = new ArrayList<>();
        parts.add("r=" + c.r());
        parts.add("loraAlpha=" + c.loraAlpha());
        parts.add("targetModules=" + c.targetModules());
        add(parts, "excludeModules", c.excludeModules(), d.excludeModules());
        add(parts, "loraDropout", c.loraDropout(), d.loraDropout());
        add(parts, "bias", c.bias().jsonName(), d.bias().jsonName());
        add(parts, "modulesToSave", c.modulesToSave(), d.modulesToSave());
        add(parts, "layersToTransform", c.layersToTransform(), d.layersToTransform());
        add(parts, "layersPattern", c.layersPattern(), d.layersPattern());
        add(parts, "rankPattern", c.rankPattern(), d.rankPattern());
        add(parts, "alphaPattern", c.alphaPattern(), d.alphaPattern());
        add(parts, "useRslora", c.useRslora(), d.useRslora());
        add(parts, "fanInFanOut", c.fanInFanOut(), d.fanInFanOut());
        add(parts, "initLoraWeights", c.initLoraWeights(), d.initLoraWeights());
        add(parts, "taskType", c.taskType(), d.taskType());
        add(parts, "baseModelNameOrPath", c.baseModelNameOrPath(), d.baseModelNameOrPath());
        add(parts, "revision", c.revision(), d.revision());
        add(parts, "inferenceMode", c.inferenceMode(), d.inferenceMode());
        add(parts, "peftVersion", c.peftVersion(), d.peftVersion());
        c.otherFields().forEach((key, value) -> {
            if (!d.otherFields().containsKey(key)) {
                parts.add(key + "=" + value);
            } else {
                add(parts, key, value, d.otherFields().get(key));
            }
        });
        return "LoraConfig[" + String.join(", ", parts) + "]";
    }

    private static void add(List<String> parts, String field, @Nullable Object value, @Nullable Object otherwise) {
        if (!Objects.equals(value, otherwise)) {
            parts.add(field + "=" + value);
        }
    }
}
