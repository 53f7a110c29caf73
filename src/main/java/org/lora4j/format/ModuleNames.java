package org.lora4j.format;

import java.util.Collection;
import java.util.HashMap;
import java.util.LinkedHashSet;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;

/** The paths of a base model's modules, found by the names that other layouts give them. */
final class ModuleNames {
    private final Set<String> paths;
    private final Map<String, Set<String>> flat = new HashMap<>();

    ModuleNames(Collection<String> paths) {
        this.paths = new LinkedHashSet<>(paths);
        for (String path : this.paths) {
            flat.computeIfAbsent(KohyaKeys.flatten(path), key -> new TreeSet<>())
                    .add(path);
        }
    }

    /**
     * The modules that a name may mean: none or several if it cannot be told. The model may be the part the name
     * belongs to, or hold that part under its usual name. Of a CLIP text encoder the level {@code text_model} may be
     * missing in the model: transformers 5 has none.
     */
    Set<String> find(AdapterLayout layout, String part, String module) {
        boolean kohya = layout == AdapterLayout.KOHYA;
        Set<String> found = kohya ? findFlat(part, module) : findDotted(part, module);
        String clip = kohya ? "text_model_" : "text_model.";
        if (found.isEmpty() && module.startsWith(clip)) {
            String rest = module.substring(clip.length());
            return kohya ? findFlat(part, rest) : findDotted(part, rest);
        }
        return found;
    }

    private Set<String> findFlat(String part, String module) {
        Set<String> found = new TreeSet<>(flat.getOrDefault(module, Set.of()));
        for (String name : KohyaKeys.pipelineNames(part)) {
            for (String path : flat.getOrDefault(name + "_" + module, Set.of())) {
                if (path.startsWith(name + ".")) {
                    found.add(path);
                }
            }
        }
        return found;
    }

    private Set<String> findDotted(String part, String module) {
        Set<String> found = new TreeSet<>(Set.of(module, part + "." + module));
        found.retainAll(paths);
        return found;
    }

    /** The modules PEFT takes a list of targets for, beyond the targets themselves. */
    Set<String> alsoMatched(Set<String> targets) {
        Set<String> extra = new TreeSet<>();
        for (String path : paths) {
            if (!targets.contains(path) && endsWithAny(path, targets)) {
                extra.add(path);
            }
        }
        return extra;
    }

    /** Whether a name of a list stands for this path: one that is a part of it from a dot to its end. */
    static boolean endsWithAny(String path, Set<String> names) {
        for (int dot = path.indexOf('.'); dot >= 0; dot = path.indexOf('.', dot + 1)) {
            if (names.contains(path.substring(dot + 1))) {
                return true;
            }
        }
        return names.contains(path);
    }
}
