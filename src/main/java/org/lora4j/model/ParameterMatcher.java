package org.lora4j.model;

import java.util.ArrayList;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.lora4j.config.LoraConfig;

/**
 * Decides which parameters a configuration adapts by itself, by PEFT 0.21's rules for {@code target_parameters}: a name
 * stands for the parameter of exactly this path and for every one whose path ends with a dot and the name. It is no
 * regular expression, and {@code layersToTransform}, {@code excludeModules} and {@code modulesToSave} do not count.
 */
final class ParameterMatcher {
    private final List<String> names;

    ParameterMatcher(LoraConfig config) {
        this.names = config.targetParameters();
    }

    boolean matches(String path) {
        return names.stream().anyMatch(name -> path.equals(name) || path.endsWith("." + name));
    }

    /**
     * The parameters to adapt, by the path of their module. PEFT wraps the parameters of one module around each other in
     * the order they are listed in: the first is the innermost, and only that order says which adapter in a file
     * belongs to which; see {@link #wrapperPath}.
     *
     * @param parameters the paths of all parameters of the base model, in the model's order
     * @param modules the paths of the modules that get an adapter as a whole
     * @return for each module the names of its parameters, in the model's order
     * @throws IllegalArgumentException if a parameter belongs to the root, or to a module that gets an adapter already
     */
    Map<String, List<String>> targets(Collection<String> parameters, Set<String> modules) {
        Map<String, List<String>> targets = new LinkedHashMap<>();
        for (String path : parameters) {
            if (!matches(path)) {
                continue;
            }
            int dot = path.lastIndexOf('.');
            if (dot < 0) {
                throw new IllegalArgumentException("targetParameters " + names + " match '" + path
                        + "', a parameter of the model itself: only those of modules within it can be adapted");
            }
            String module = path.substring(0, dot);
            if (modules.contains(module)) {
                throw new IllegalArgumentException("targetParameters " + names + " match '" + path
                        + "', whose module is among the targetModules: name it in one of them, and set targetModules to no"
                        + " names if you did not set them");
            }
            targets.computeIfAbsent(module, m -> new ArrayList<>()).add(path.substring(dot + 1));
        }
        return targets;
    }

    /**
     * Where PEFT's file keeps the adapter of a parameter: the module's path with {@code .base_layer} for each wrapper
     * around it, without {@code .lora_A.weight}.
     *
     * @param parameters those of the module that are adapted, in the order of {@link #targets}
     */
    static String wrapperPath(String module, List<String> parameters, String parameter) {
        int around = parameters.size() - 1 - parameters.indexOf(parameter);
        return module + ".base_layer".repeat(around);
    }

    /**
     * Refuses an adapter that would nest its parameters otherwise than those present.
     *
     * @param present the configurations of the adapters on the model, by name
     * @throws IllegalArgumentException if one of them adapts other parameters
     */
    static void checkBeside(String name, LoraConfig config, Map<String, LoraConfig> present) {
        Set<String> wanted = Set.copyOf(config.targetParameters());
        present.forEach((other, its) -> {
            if (!wanted.isEmpty()
                    && !its.targetParameters().isEmpty()
                    && !wanted.equals(Set.copyOf(its.targetParameters()))) {
                throw new IllegalArgumentException(
                        "adapter \"" + name + "\" has targetParameters " + wanted + ", but \""
                                + other + "\" has " + its.targetParameters()
                                + ": all adapters of one model must adapt the same parameters, or none");
            }
        });
    }
}
