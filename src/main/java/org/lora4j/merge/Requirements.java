package org.lora4j.merge;

import java.util.ArrayList;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Set;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.lora4j.config.BiasMode;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.ModuleSelector;
import org.lora4j.config.TargetMatcher;
import org.lora4j.merge.AdapterKey.Role;

/** What a configuration says an adapter has, and its file lacks. */
final class Requirements {
    private static final Pattern EXPERT = Pattern.compile("\\.experts\\.\\d+\\.");
    private static final Pattern LAYER = Pattern.compile("\\.(?:layers|h|blocks|layer)\\.(\\d+)\\.");

    private final Matching matching;
    private final BaseCheckpoint base;
    private final List<String> missing = new ArrayList<>();

    Requirements(Matching matching) {
        this.matching = matching;
        this.base = matching.base();
    }

    /** Everything that is missing, a sentence each. */
    List<String> missing() {
        return missing;
    }

    void check(AdapterSource adapter) {
        LoraConfig config = adapter.config();
        Set<String> adapted = new LinkedHashSet<>();
        for (AdapterSource.Module module : adapter.modules()) {
            adapted.add(matching.mapped(adapter, module.path));
            need(adapter, module, config.useDora(), Role.MAGNITUDE, "use_dora");
            need(adapter, module, config.loraBias(), Role.BIAS, "lora_bias");
        }
        targets(adapter, adapted);
        Set<String> values = new LinkedHashSet<>();
        adapter.values().forEach(key -> values.add(matching.mapped(adapter, key.path())));
        for (String name : base.names()) {
            String parameter = unmapped(adapter, name);
            if (Matching.isSaved(config, parameter) && !values.contains(name)) {
                missing.add(adapter + ": modules_to_save " + config.modulesToSave() + " means " + name
                        + ", which the adapter lacks");
            } else if (config.bias() == BiasMode.ALL
                    && name.endsWith(".bias")
                    && !values.contains(name)
                    && inModel(name)) {
                missing.add(adapter + ": bias is all, but the adapter lacks " + name);
            }
        }
        for (String module : config.modulesToSave()) {
            if (adapter.values().stream().noneMatch(key -> isOf(key.path(), module))) {
                missing.add(
                        adapter + ": modules_to_save names \"" + module + "\", and no tensor of the adapter is its");
            }
        }
        config.trainableTokenIndices().forEach((module, ids) -> {
            if (!ids.isEmpty() && adapter.tokens().stream().noneMatch(key -> isOf(key.path() + ".", module))) {
                missing.add(adapter + ": trainable_token_indices names \"" + module
                        + "\", and the adapter has no rows for it");
            }
        });
    }

    private static boolean isOf(String parameter, String module) {
        return parameter.startsWith(module + ".") || parameter.contains("." + module + ".");
    }

    private void need(AdapterSource adapter, AdapterSource.Module module, boolean wanted, Role role, String field) {
        if (wanted != module.keys.containsKey(role)) {
            missing.add(adapter + ": " + module.path + (wanted ? " lacks what " : " has what only ") + field
                    + (wanted ? " = true" : " = true would") + " give it ("
                    + role.name().toLowerCase(java.util.Locale.ROOT)
                    + "); use the configuration the tensors came with");
        }
    }

    /** Modules of the checkpoint that the configuration targets, as far as names can tell. */
    private void targets(AdapterSource adapter, Set<String> adapted) {
        LoraConfig config = adapter.config();
        if (config.targetModules() == null || config.targetModules() instanceof ModuleSelector.AllLinear) {
            return;
        }
        boolean experts =
                adapted.stream().anyMatch(path -> EXPERT.matcher(path + ".").find());
        TargetMatcher matcher = new TargetMatcher(config);
        for (String name : base.names()) {
            String module = name.endsWith(".weight") ? name.substring(0, name.length() - ".weight".length()) : "";
            var stored = base.find(name);
            boolean candidate = !module.isEmpty()
                    && stored != null
                    && stored.info().shape().length >= 2
                    && (experts || !EXPERT.matcher(name).find())
                    && inModel(name);
            if (candidate
                    && !adapted.contains(module)
                    && matcher.verdict(unmapped(adapter, module)) == TargetMatcher.Verdict.TARGET) {
                missing.add(adapter + ": target_modules mean " + module + ", which the adapter has no factors for");
            }
        }
    }

    /** A name of the checkpoint as the adapter would write it. */
    private String unmapped(AdapterSource adapter, String name) {
        NameMapping mapping = matching.mapping(adapter);
        return name.startsWith(mapping.to())
                ? mapping.from() + name.substring(mapping.to().length())
                : name;
    }

    /** Checkpoints may hold layers beyond those of the model, such as the ones that predict further tokens. */
    private boolean inModel(String name) {
        Matcher layer = LAYER.matcher(name);
        return !(base.field("num_hidden_layers") instanceof Long layers)
                || !layer.find()
                || layer.group(1).length() > 9
                || Integer.parseInt(layer.group(1)) < layers;
    }
}
