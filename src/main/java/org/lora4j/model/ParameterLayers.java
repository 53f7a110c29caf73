package org.lora4j.model;

import java.util.ArrayList;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.TreeMap;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.StringSharedModuleDict;
import org.bytedeco.pytorch.Tensor;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.LoraConfig;
import org.lora4j.layer.ActiveAdapters;
import org.lora4j.layer.LoraLayer;
import org.lora4j.layer.LoraParameter;
import org.lora4j.ops.Tensors;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** Finds the parameters that a configuration adapts by themselves, and makes their layers. */
final class ParameterLayers {
    private static final Logger LOG = LoggerFactory.getLogger(ParameterLayers.class);

    private final Module root;
    private final ModuleTree tree;
    private final ActiveAdapters active;

    ParameterLayers(Module root, ModuleTree tree, ActiveAdapters active) {
        this.root = root;
        this.tree = tree;
        this.active = active;
    }

    /**
     * Adds the parameters' layers to those of modules: those in place already, or new ones.
     *
     * @param targets the layers of the adapter by path, which receives more
     * @param injected the layers in the model
     * @throws IllegalArgumentException if a parameter cannot take an adapter
     */
    void addTo(Map<String, LoraLayer> targets, LoraConfig config, Map<String, LoraLayer> injected) {
        if (config.targetParameters().isEmpty()) {
            return;
        }
        Map<String, Tensor> parameters = Parameters.of(root);
        // A module registered twice counts once, under its first name.
        parameters
                .keySet()
                .removeIf(path -> path.indexOf('.') >= 0 && !tree.paths().contains(modulePath(path)));
        new ParameterMatcher(config)
                .targets(parameters.keySet(), targets.keySet())
                .forEach((module, names) -> {
                    for (int i = 0; i < names.size(); i++) {
                        String path = module + "." + names.get(i);
                        LoraLayer known = injected.get(path);
                        if (known == null) {
                            int around = names.size() - 1 - i;
                            known = newLayer(module, names.get(i), parameters, around);
                        }
                        known.check(config);
                        targets.put(path, known);
                    }
                });
        warnUnmatched(config, parameters.keySet());
    }

    private LoraParameter newLayer(String module, String name, Map<String, Tensor> parameters, int around) {
        String path = module + "." + name;
        Tensor parameter = Objects.requireNonNull(parameters.get(path), path);
        parameters.forEach((other, tensor) -> {
            if (!other.equals(path) && tensor.is_same(parameter)) {
                throw new IllegalArgumentException(
                        "targetParameters match '" + path + "', which is also '" + other
                                + "': an adapter of one would change both; leave it out, or give the modules tensors of their own");
            }
        });
        return new LoraParameter(module(module), module, name, parameter, around, active);
    }

    /** The module at a path: its Java object, or else a handle of the C++ object. */
    private Module module(String path) {
        Module object = tree.object(path);
        if (object != null) {
            return object;
        }
        StringSharedModuleDict named = root.named_modules();
        for (long i = 0; i < named.size(); i++) {
            if (named.get(i).key() != null && named.get(i).key().getString().equals(path)) {
                return Tensors.keep(named.get(i).access());
            }
        }
        throw new IllegalArgumentException("no module '" + path + "' in the model");
    }

    private static String modulePath(String parameter) {
        return parameter.substring(0, Math.max(0, parameter.lastIndexOf('.')));
    }

    /** Names that mean nothing are legal, as in PEFT, while others do; most often they are mistakes. */
    private static void warnUnmatched(LoraConfig config, Collection<String> paths) {
        unmatched(config, paths)
                .forEach((name, near) ->
                        LOG.warn("targetParameters names \"{}\", which no parameter has; near misses: {}", name, near));
    }

    /** The names that no parameter has, each with those it may have been meant for. */
    private static Map<String, List<String>> unmatched(LoraConfig config, Collection<String> paths) {
        Map<String, List<String>> unmatched = new TreeMap<>();
        for (String name : config.targetParameters()) {
            if (paths.stream().noneMatch(path -> path.equals(name) || path.endsWith("." + name))) {
                unmatched.put(name, NearMisses.of(name, paths));
            }
        }
        return unmatched;
    }

    /** What a configuration without any target should say: names like its own, and parameters there are; or nothing. */
    String instead(LoraConfig config) {
        if (config.targetParameters().isEmpty()) {
            return "";
        }
        Map<String, Tensor> parameters = Parameters.of(root);
        Map<String, List<String>> near = unmatched(config, parameters.keySet());
        near.values().removeIf(List::isEmpty);
        List<String> some = new ArrayList<>();
        parameters.forEach((path, tensor) -> {
            if (path.indexOf('.') >= 0 && tensor.dim() == 3 && some.size() < 4) {
                some.add(path);
            }
        });
        return "targetParameters " + config.targetParameters() + " match no parameter"
                + (some.isEmpty() ? "" : "; stacks of matrices are " + some)
                + (near.isEmpty() ? "" : "; near misses: " + near);
    }

    /**
     * Refuses layers of which one adapts a module and another a parameter of that module, whose updates would be in each
     * other's way.
     */
    static void checkApart(Map<String, LoraLayer> layers, Map<String, LoraLayer> injected) {
        Map<String, LoraLayer> all = new LinkedHashMap<>(injected);
        all.putAll(layers);
        for (LoraLayer layer : all.values()) {
            @Nullable
            LoraLayer module = layer instanceof LoraParameter parameter ? all.get(parameter.modulePath()) : null;
            if (module != null) {
                throw new IllegalArgumentException(
                        "'" + layer.path() + "' has an adapter as a parameter and its module '"
                                + module.path() + "' (" + module.type()
                                + ") has one as a whole: adapt it in one of the two ways on one model");
            }
        }
    }
}
