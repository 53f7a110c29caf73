package org.lora4j.config;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/** What {@link LoraConfig#warnings()} says. */
final class LoraConfigWarnings {
    /** Initialisations that use settings, with their key. */
    private static final Map<String, InitLoraWeights.Kind> SETTINGS = new TreeMap<>(Map.of(
            "corda_config", InitLoraWeights.Kind.CORDA,
            "eva_config", InitLoraWeights.Kind.EVA,
            "loftq_config", InitLoraWeights.Kind.LOFTQ));

    private LoraConfigWarnings() {}

    /**
     * The warnings about a configuration.
     *
     * @param given the fields as they were before defaults were filled in
     * @param unknown what is in its fields that PEFT does not know, by name, with what is wrong about it
     * @throws IllegalArgumentException if there is such, and it is not to be kept
     */
    static List<String> of(LoraConfig config, LoraConfigBuilder given, Map<String, String> unknown) {
        List<String> warnings = new ArrayList<>();
        InitLoraWeights init = config.initLoraWeights();
        if (init.kind() == InitLoraWeights.Kind.UNKNOWN) {
            String rule = "is not an initialisation PEFT 0.21 knows";
            if (!given.keepUnknown) {
                throw Invalid.field("initLoraWeights", init.jsonValue(), rule + "; use " + InitLoraWeights.NAMES);
            }
            warnings.add("initLoraWeights \"" + init + "\" " + rule
                    + ": the adapter can be loaded, but none can be started from it");
        }
        unknown.forEach((name, rule) -> {
            if (!given.keepUnknown) {
                throw Invalid.field(name, value(config, name), rule + "; correct it, or keepUnknown(true) keeps it");
            }
            warnings.add(name + " = " + value(config, name) + " " + rule + ": it is kept, and has no effect");
        });
        settings(config, given, warnings);
        boolean activated = config.otherFields().get("alora_invocation_tokens") != null;
        if (activated && config.taskType() != TaskType.CAUSAL_LM) {
            warnings.add(
                    "alora_invocation_tokens are set, which need taskType CAUSAL_LM, but it is " + config.taskType());
        }
        boolean patterns =
                !config.rankPattern().isEmpty() || !config.alphaPattern().isEmpty();
        if (config.useRslora() && patterns && isConverted(init)) {
            warnings.add("useRslora with rankPattern or alphaPattern: an adapter started from \"" + init
                    + "\" cannot be converted to one for the original base weights later");
        }
        return List.copyOf(warnings);
    }

    private static boolean isConverted(InitLoraWeights init) {
        return switch (init.kind()) {
            case PISSA, OLORA, CORDA, LORA_GA -> true;
            default -> false;
        };
    }

    private static void settings(LoraConfig config, LoraConfigBuilder given, List<String> warnings) {
        InitLoraWeights init = config.initLoraWeights();
        String missing = OtherFields.missingSettings(given.otherFields, init);
        if (missing != null) {
            warnings.add("initLoraWeights is \"" + init + "\", and " + missing
                    + " is not set: PEFT's defaults are used, " + config.settings(missing));
        }
        SETTINGS.forEach((key, kind) -> {
            Object value = config.otherFields().get(key);
            boolean isSet = key.equals("loftq_config") ? OtherFields.truthy(value) : value != null;
            if (isSet && init.kind() != kind) {
                warnings.add(key + " is set and has no effect, since initLoraWeights is " + init);
            }
        });
    }

    private static String value(LoraConfig config, String name) {
        Map<String, ?> fields = config.otherFields();
        int dot = name.indexOf('.');
        return String.valueOf(
                dot < 0 || fields.containsKey(name)
                        ? fields.get(name)
                        : config.settings(name.substring(0, dot)).get(name.substring(dot + 1)));
    }
}
