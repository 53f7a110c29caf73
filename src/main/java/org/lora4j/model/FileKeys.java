package org.lora4j.model;

import java.util.Collection;
import java.util.HashMap;
import java.util.Map;
import java.util.function.Predicate;
import org.lora4j.layer.LoraEmbedding;
import org.lora4j.layer.LoraLayer;
import org.lora4j.layer.LoraParameter;
import org.lora4j.layer.LoraWeights;

/**
 * The names of one adapter's tensors in PEFT's files: paths of the base model behind {@code base_model.model.}, without the
 * adapter's name. PEFT wraps the module of an adapted parameter, once for each of them, and a wrapper's name for what it
 * wraps, {@code base_layer}, is part of every path that leads through it.
 */
final class FileKeys {
    static final String PREFIX = "base_model.model.";
    private static final String WRAPPED = ".base_layer";

    /** How many wrappers PEFT has around a module, by path; only what was adapted has any. */
    private final Map<String, Integer> wrappers = new HashMap<>();

    private final Predicate<String> ofParameters;

    /** @param layers those the adapter has factors at */
    FileKeys(Collection<LoraLayer> layers) {
        Map<String, Integer> parameters = new HashMap<>();
        for (LoraLayer layer : layers) {
            if (layer instanceof LoraParameter parameter) {
                parameters.merge(parameter.modulePath(), 1, Integer::sum);
            } else {
                wrappers.put(layer.path(), 1);
            }
        }
        wrappers.putAll(parameters);
        ofParameters = Map.copyOf(parameters)::containsKey;
    }

    /** The key of a part of an adapter at a layer. */
    String factor(LoraLayer layer, LoraWeights.Part part) {
        boolean embedding = layer instanceof LoraEmbedding;
        String module = layer instanceof LoraParameter parameter
                ? through(parameter.modulePath(), ofParameters) + WRAPPED.repeat(parameter.wrappersAround())
                : through(layer.filePath(), ofParameters);
        return PREFIX
                + module
                + switch (part) {
                    case A -> embedding ? ".lora_embedding_A" : ".lora_A.weight";
                    case B -> embedding ? ".lora_embedding_B" : ".lora_B.weight";
                    case BIAS -> ".lora_B.bias";
                    case MAGNITUDE -> ".lora_magnitude_vector";
                };
    }

    /** The key of the rows an adapter replaces at a module. */
    String tokens(String path) {
        return PREFIX + through(path, ofParameters) + ".token_adapter.trainable_tokens_delta";
    }

    /** The key of a base parameter the adapter has a copy of. */
    String saved(String path) {
        return PREFIX + through(path, module -> true);
    }

    /** The path of the base model's parameter of this key, if the file repeats it. */
    static String baseParameter(String key) {
        return key.substring(PREFIX.length()).replaceAll("(\\.base_layer)+\\.", ".");
    }

    /** A path with PEFT's names for what the modules above it wrap. */
    private String through(String path, Predicate<String> wrapping) {
        StringBuilder key = new StringBuilder();
        int from = 0;
        for (int dot = path.indexOf('.'); dot >= 0; dot = path.indexOf('.', dot + 1)) {
            String module = path.substring(0, dot);
            key.append(path, from, dot);
            key.append(WRAPPED.repeat(wrapping.test(module) ? wrappers.getOrDefault(module, 0) : 0));
            from = dot;
        }
        return key.append(path, from, path.length()).toString();
    }
}
