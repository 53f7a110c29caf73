package org.lora4j.model;

import java.util.ArrayList;
import java.util.Collection;
import java.util.Comparator;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.function.Function;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.PeftCompat;
import org.lora4j.layer.ActiveAdapters;
import org.lora4j.layer.Adapter;
import org.lora4j.layer.LoraLayer;
import org.lora4j.layer.LoraParameter;
import org.lora4j.layer.SavedParameter;
import org.lora4j.layer.TokenRows;

/** Computes what status reports say, by the rules of PEFT 0.21's {@code get_layer_status} and {@code get_model_status}. */
final class Status {
    private static final String TOKENS = ".token_adapter";

    /** A tensor of an adapter, and whether it gets gradients now. */
    private record Part(Tensor tensor, boolean gradients) {
        static Part of(Tensor tensor) {
            return new Part(tensor, tensor.requires_grad());
        }
    }

    private Status() {}

    /**
     * The state of every layer that carries adapters, in the order of the model's modules.
     *
     * @param modules the paths of all modules of the model, in its order
     * @param layers the layers in place
     * @param adapters all adapters of the model
     */
    static List<LayerStatus> layers(
            Collection<String> modules,
            Collection<LoraLayer> layers,
            Collection<Adapter> adapters,
            ActiveAdapters active) {
        List<LayerStatus> statuses = new ArrayList<>();
        try (PointerScope scope = new PointerScope()) {
            for (LoraLayer layer : layers) {
                Map<String, List<Part>> rows = rows(layer, adapters);
                if (rows.isEmpty() || !layer.adapters().names().isEmpty()) {
                    statuses.add(of(layer, active));
                }
                if (!rows.isEmpty()) {
                    List<String> merged = kept(layer.adapters().merged(), rows.keySet());
                    statuses.add(part(layer.path() + TOKENS, "TrainableTokensLayer", active, merged, rows));
                }
            }
            copied(adapters, active)
                    .forEach((path, copies) ->
                            statuses.add(part(path, "ModulesToSaveWrapper", active, List.of(), copies)));
        }
        Map<String, Integer> order = new HashMap<>();
        modules.forEach(path -> order.put(path, order.size()));
        // A parameter comes where its module does.
        layers.stream()
                .filter(LoraParameter.class::isInstance)
                .forEach(layer -> order.put(
                        layer.path(), order.getOrDefault(((LoraParameter) layer).modulePath(), order.size())));
        statuses.sort(Comparator.comparingInt(status -> order.getOrDefault(module(status.name()), order.size())));
        return List.copyOf(statuses);
    }

    private static String module(String name) {
        return name.endsWith(TOKENS) ? name.substring(0, name.length() - TOKENS.length()) : name;
    }

    private static LayerStatus of(LoraLayer layer, ActiveAdapters active) {
        Map<String, List<Part>> parts = new TreeMap<>();
        for (String name : layer.adapters().names()) {
            parts.put(
                    name,
                    layer.adapters().get(name).parts().values().stream()
                            .map(Part::of)
                            .toList());
        }
        return status(
                layer.path(),
                layer.type(),
                active,
                active.names(),
                kept(layer.adapters().merged(), parts.keySet()),
                parts);
    }

    /** A part that lists only those of the active adapters it has. */
    private static LayerStatus part(
            String name, String type, ActiveAdapters active, List<String> merged, Map<String, List<Part>> parts) {
        return status(name, type, active, kept(active.names(), parts.keySet()), merged, parts);
    }

    private static LayerStatus status(
            String name,
            String type,
            ActiveAdapters active,
            List<String> activeNames,
            List<String> merged,
            Map<String, List<Part>> parts) {
        Map<String, Common<Boolean>> gradients = new TreeMap<>();
        Map<String, List<String>> devices = new TreeMap<>();
        parts.forEach((adapter, tensors) -> {
            gradients.put(
                    adapter, Common.of(tensors.stream().map(Part::gradients).toList()));
            devices.put(
                    adapter,
                    tensors.stream()
                            .map(part -> device(part.tensor()))
                            .distinct()
                            .sorted()
                            .toList());
        });
        return new LayerStatus(
                name,
                type,
                active.enabled(),
                activeNames,
                merged,
                gradients,
                List.copyOf(parts.keySet()),
                devices,
                null);
    }

    /** The type of a tensor's device, without its number. */
    private static String device(Tensor tensor) {
        String device = tensor.device().str().getString();
        int colon = device.indexOf(':');
        return colon < 0 ? device : device.substring(0, colon);
    }

    private static List<String> kept(List<String> names, Set<String> present) {
        return names.stream().filter(present::contains).toList();
    }

    /** The rows that adapters replace in a layer's weight, by adapter. */
    private static Map<String, List<Part>> rows(LoraLayer layer, Collection<Adapter> adapters) {
        Map<String, List<Part>> rows = new TreeMap<>();
        for (Adapter adapter : adapters) {
            TokenRows found = layer.adapters().rows(adapter.name());
            if (found != null) {
                rows.put(adapter.name(), List.of(Part.of(found.rows())));
            }
        }
        return rows;
    }

    /** The copies of parameters, by the path of the module that {@code modulesToSave} names and by adapter. */
    private static Map<String, Map<String, List<Part>>> copied(Collection<Adapter> adapters, ActiveAdapters active) {
        Map<String, Map<String, List<Part>>> copied = new LinkedHashMap<>();
        for (Adapter adapter : adapters) {
            adapter.saved().forEach((path, saved) -> {
                String module = copiedModule(adapter, path, active.has(PeftCompat.MODULES_TO_SAVE_BY_SUFFIX));
                if (module != null && saved.trains()) {
                    boolean gradients = saved.isActive() && saved.parameter().requires_grad();
                    copied.computeIfAbsent(module, m -> new TreeMap<>())
                            .computeIfAbsent(adapter.name(), a -> new ArrayList<>())
                            .add(new Part(saved.value(), gradients));
                }
            });
        }
        return copied;
    }

    /** The outermost module around a parameter that {@code modulesToSave} names; null for biases that train in place. */
    private static @Nullable String copiedModule(Adapter adapter, String parameter, boolean bySuffix) {
        for (int dot = parameter.indexOf('.'); dot >= 0; dot = parameter.indexOf('.', dot + 1)) {
            String module = parameter.substring(0, dot);
            for (String name : adapter.config().modulesToSave()) {
                if (module.equals(name) || module.endsWith(bySuffix ? name : "." + name)) {
                    return module;
                }
            }
        }
        return null;
    }

    /**
     * What layers say together.
     *
     * @param baseModelType the Java class of the base model
     * @param adapters the names of all adapters
     * @param active what is reported while no layer carries an adapter
     * @param trainable the numbers that get gradients
     * @param total the numbers in the base model and in all adapters
     */
    static ModelStatus model(
            String baseModelType,
            Collection<String> adapters,
            ActiveAdapters active,
            long trainable,
            long total,
            List<LayerStatus> layers) {
        Map<String, String> types = new TreeMap<>();
        adapters.forEach(name -> types.put(name, "LORA"));
        Set<String> available = new TreeSet<>();
        layers.forEach(layer -> available.addAll(layer.availableAdapters()));
        return new ModelStatus(
                baseModelType,
                "LoraModel",
                types,
                trainable,
                total,
                layers.size(),
                layers.isEmpty() ? new Common<>(active.enabled()) : common(layers, LayerStatus::enabled),
                layers.isEmpty() ? new Common<>(active.names()) : common(layers, LayerStatus::activeAdapters),
                merged(layers),
                gradients(layers),
                List.copyOf(available),
                devices(layers),
                null);
    }

    private static <T> Common<T> common(List<LayerStatus> layers, Function<LayerStatus, T> value) {
        return Common.of(layers.stream().map(value).toList());
    }

    /** The adapters merged somewhere, if each is merged into every layer that has it. */
    private static Common<List<String>> merged(List<LayerStatus> layers) {
        Set<String> merged = new TreeSet<>();
        layers.forEach(layer -> merged.addAll(layer.mergedAdapters()));
        for (LayerStatus layer : layers) {
            for (String adapter : layer.availableAdapters()) {
                if (merged.contains(adapter) && !layer.mergedAdapters().contains(adapter)) {
                    return Common.irregular();
                }
            }
        }
        return new Common<>(List.copyOf(merged));
    }

    private static Map<String, Common<Boolean>> gradients(List<LayerStatus> layers) {
        Map<String, List<Common<Boolean>>> all = new TreeMap<>();
        layers.forEach(layer -> layer.requiresGrad()
                .forEach((adapter, value) ->
                        all.computeIfAbsent(adapter, a -> new ArrayList<>()).add(value)));
        Map<String, Common<Boolean>> gradients = new TreeMap<>();
        all.forEach((adapter, values) -> {
            Common<Common<Boolean>> common = Common.of(values);
            gradients.put(adapter, common.value() == null ? Common.irregular() : common.value());
        });
        return gradients;
    }

    private static Map<String, List<String>> devices(List<LayerStatus> layers) {
        Map<String, Set<String>> all = new TreeMap<>();
        layers.forEach(layer -> layer.devices()
                .forEach((adapter, names) ->
                        all.computeIfAbsent(adapter, a -> new TreeSet<>()).addAll(names)));
        Map<String, List<String>> devices = new TreeMap<>();
        all.forEach((adapter, names) -> devices.put(adapter, List.copyOf(names)));
        return devices;
    }

    /** PEFT's line about what is trained. */
    static String summary(ModelStatus status) {
        long trainable = status.trainableParameters();
        long all = status.totalParameters();
        return String.format(
                Locale.ROOT,
                "trainable params: %,d || all params: %,d || trainable%%: %.4f",
                trainable,
                all,
                100.0 * trainable / all);
    }

    /** The numbers an adapter adds to the model: not those of biases, nor of a weight that it starts with a part of. */
    static long size(Adapter adapter, ActiveAdapters active) {
        boolean bySuffix = active.has(PeftCompat.MODULES_TO_SAVE_BY_SUFFIX);
        long factors = adapter.weights().values().stream()
                .flatMap(weights -> weights.parts().values().stream())
                .mapToLong(Tensor::numel)
                .sum();
        long rows = adapter.tokens().values().stream()
                .mapToLong(each -> each.rows().numel())
                .sum();
        long copies = adapter.saved().entrySet().stream()
                .filter(each -> copiedModule(adapter, each.getKey(), bySuffix) != null)
                .map(Map.Entry::getValue)
                .filter(SavedParameter::trains)
                .mapToLong(saved -> saved.value().numel())
                .sum();
        return factors + rows + copies;
    }
}
