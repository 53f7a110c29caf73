package org.lora4j.model;

import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/**
 * A model with adapters, as PEFT's {@code get_model_status} reports it.
 *
 * @param baseModelType the Java class of the base model
 * @param adapterModelType PEFT's class of a model with adapters, {@code LoraModel}
 * @param peftTypes the method of each adapter, {@code LORA}
 * @param trainableParameters numbers that get gradients
 * @param totalParameters numbers in the base model and in all adapters; trained biases count once
 * @param adapterLayers layers that carry adapters
 * @param enabled whether adapters apply at all
 * @param activeAdapters the active adapters, in the order in which their updates are added; as in PEFT irregular where a
 *     copied module or replaced rows belong to another adapter than the active one
 * @param mergedAdapters the adapters now part of the weights, sorted; irregular if one is merged into some of its layers
 *     only, as it always is beside a copied module
 * @param requiresGrad whether the tensors of each adapter get gradients; irregular if only some of them do
 * @param availableAdapters all adapters, sorted
 * @param devices the types of the devices that hold each adapter's tensors, sorted
 * @param quantizationBackend what all layers say of it
 */
public record ModelStatus(
        String baseModelType,
        String adapterModelType,
        Map<String, String> peftTypes,
        long trainableParameters,
        long totalParameters,
        int adapterLayers,
        Common<Boolean> enabled,
        Common<List<String>> activeAdapters,
        Common<List<String>> mergedAdapters,
        Map<String, Common<Boolean>> requiresGrad,
        List<String> availableAdapters,
        Map<String, List<String>> devices,
        @Nullable String quantizationBackend) {}
