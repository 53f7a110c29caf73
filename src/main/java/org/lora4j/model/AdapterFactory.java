package org.lora4j.model;

import java.io.IOException;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Map;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.Tensor;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.PeftCompat;
import org.lora4j.layer.Adapter;
import org.lora4j.layer.LoraLayer;
import org.lora4j.layer.LoraWeights;
import org.lora4j.layer.SavedParameter;
import org.lora4j.ops.Tensors;

/** Makes the adapters of one model: new ones, and those in files. The model does not change. */
final class AdapterFactory {
    /**
     * An adapter that is not attached yet.
     *
     * @param layers the layers it has weights for; those not in the model yet are to be injected
     */
    record Made(Adapter adapter, Map<String, LoraLayer> layers) {}

    private final Module base;
    private final Injector injector;

    AdapterFactory(Module base, Injector injector) {
        this.base = base;
        this.injector = injector;
    }

    Made fresh(String name, LoraConfig config) {
        return injector.onItsLayers(config, () -> freshHere(name, config));
    }

    private Made freshHere(String name, LoraConfig config) {
        LoraConfig resolved = injector.resolve(config);
        Map<String, LoraLayer> targets = injector.targets(resolved);
        Map<String, LoraWeights> weights = new LinkedHashMap<>();
        targets.forEach((path, layer) -> weights.put(path, layer.newWeights(resolved)));
        Map<String, SavedParameter> saved = new LinkedHashMap<>();
        injector.saved(resolved, targets.keySet())
                .forEach((path, parameter) -> saved.put(path, new SavedParameter(parameter, parameter)));
        return new Made(new Adapter(name, resolved, weights, saved), targets);
    }

    /** @throws IllegalArgumentException listing every tensor that does not fit */
    Made loaded(String name, LoraConfig config, Path folder) throws IOException {
        if (config.initLoraWeights().changesBase()) {
            throw new IllegalArgumentException("the adapter in " + folder + " started from initLoraWeights="
                    + config.initLoraWeights()
                    + ", which changes the base weights it belongs to: convert it to plain LoRA "
                    + "(in PEFT, save_pretrained with path_initial_model_for_weight_conversion)");
        }
        return injector.onItsLayers(config, () -> loadedHere(name, config, folder));
    }

    private Made loadedHere(String name, LoraConfig config, Path folder) throws IOException {
        LoraConfig resolved = injector.resolve(config);
        Map<String, LoraLayer> targets = injector.targets(resolved);
        Map<String, Tensor> parameters = injector.saved(resolved, targets.keySet());
        boolean lenient = injector.active().has(PeftCompat.LENIENT_KEYS);
        Map<String, Tensor> values =
                AdapterFiles.read(folder, resolved, targets, parameters, Parameters.of(base), lenient);
        Map<String, LoraWeights> weights = new LinkedHashMap<>();
        targets.forEach((path, layer) -> {
            Map<LoraWeights.Part, Tensor> parts = new LinkedHashMap<>();
            LoraWeights.Part.of(resolved).forEach(part -> {
                Tensor value = values.get(AdapterFiles.key(layer, part));
                if (value != null) {
                    parts.put(part, own(value, layer));
                }
            });
            if (parts.size() < LoraWeights.Part.of(resolved).size()) {
                layer.newWeights(resolved).parts().forEach(parts::putIfAbsent);
            }
            weights.put(path, new LoraWeights(resolved, layer.configPath(), parts));
        });
        Map<String, SavedParameter> saved = new LinkedHashMap<>();
        parameters.forEach((path, parameter) -> saved.put(
                path,
                new SavedParameter(
                        parameter, values.getOrDefault(AdapterFiles.savedKey(path, targets.keySet()), parameter))));
        return new Made(new Adapter(name, resolved, weights, saved), targets);
    }

    /** A copy in memory of our own, in the type of the layer's factors: the file stays mapped no longer than needed. */
    private Tensor own(Tensor value, LoraLayer layer) {
        if (injector.active().has(PeftCompat.LOW_MEMORY_ROUNDS)) {
            value = value.to(Tensors.type(layer.weight()));
        }
        return value.to(layer.weight().device(), layer.factorType())
                .contiguous()
                .clone();
    }
}
