package org.lora4j.model;

import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.TreeMap;
import java.util.TreeSet;
import org.bytedeco.pytorch.Tensor;
import org.lora4j.layer.ActiveAdapters;
import org.lora4j.layer.Adapter;
import org.lora4j.layer.LoraLayer;
import org.lora4j.layer.LoraWeights;

/** Computes what status reports say. */
final class Status {
    private Status() {}

    static LayerStatus of(LoraLayer layer, ActiveAdapters active) {
        Map<String, Boolean> gradients = new TreeMap<>();
        Map<String, String> devices = new TreeMap<>();
        for (String name : layer.adapters().names()) {
            LoraWeights weights = layer.adapters().get(name);
            gradients.put(name, weights.a().requires_grad());
            devices.put(name, weights.a().device().str().getString());
        }
        return new LayerStatus(
                layer.path(),
                layer.type(),
                active.enabled(),
                active.names(),
                layer.adapters().merged(),
                gradients,
                List.copyOf(new TreeSet<>(layer.adapters().names())),
                devices);
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

    /** The numbers in an adapter. */
    static long size(Adapter adapter) {
        long factors = adapter.weights().values().stream()
                .flatMap(weights -> weights.parts().values().stream())
                .mapToLong(Tensor::numel)
                .sum();
        return factors
                + adapter.saved().values().stream()
                        .mapToLong(saved -> saved.value().numel())
                        .sum();
    }
}
