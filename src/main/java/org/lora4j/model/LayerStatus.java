package org.lora4j.model;

import java.util.List;
import java.util.Map;

/**
 * One adapted layer, as PEFT's {@code get_layer_status} reports it.
 *
 * @param name the module's path in the base model
 * @param type PEFT's layer type, such as {@code lora.Linear}
 * @param enabled whether adapters apply at all
 * @param activeAdapters the model's active adapters
 * @param mergedAdapters the adapters now part of this layer's weight
 * @param requiresGrad whether each adapter's factors get gradients
 * @param availableAdapters the adapters this layer has, sorted
 * @param devices the device of each adapter's factors
 */
public record LayerStatus(
        String name,
        String type,
        boolean enabled,
        List<String> activeAdapters,
        List<String> mergedAdapters,
        Map<String, Boolean> requiresGrad,
        List<String> availableAdapters,
        Map<String, String> devices) {}
