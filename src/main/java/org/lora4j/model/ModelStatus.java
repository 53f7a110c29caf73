package org.lora4j.model;

import java.util.List;

/**
 * A model with adapters, as PEFT's {@code get_model_status} reports it.
 *
 * @param baseModelType the Java class of the base model
 * @param trainableParameters parameters that get gradients
 * @param totalParameters parameters of the base model and of all adapters
 * @param adapterLayers layers that carry adapters
 * @param enabled whether adapters apply at all
 * @param activeAdapters the active adapters, in the order in which their updates are added
 * @param mergedAdapters the adapters now part of the weights
 * @param availableAdapters all adapters, sorted
 */
public record ModelStatus(
        String baseModelType,
        long trainableParameters,
        long totalParameters,
        int adapterLayers,
        boolean enabled,
        List<String> activeAdapters,
        List<String> mergedAdapters,
        List<String> availableAdapters) {}
