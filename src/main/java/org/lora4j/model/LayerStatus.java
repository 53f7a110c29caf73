package org.lora4j.model;

import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/**
 * One adapted layer, as PEFT's {@code get_layer_status} reports it: a layer with factors, a module an adapter keeps a copy
 * of, or an embedding some rows of which it replaces.
 *
 * @param name the module's path in the base model, with {@code .token_adapter} for replaced rows
 * @param type PEFT's type: {@code lora.Linear} and the like, {@code ModulesToSaveWrapper} or {@code TrainableTokensLayer}
 * @param enabled whether adapters apply at all
 * @param activeAdapters the model's active adapters; for a copied module and replaced rows those of them it has
 * @param mergedAdapters the adapters now part of this layer's weight, in the order they were merged
 * @param requiresGrad whether the tensors of each adapter get gradients; irregular if only some of them do
 * @param availableAdapters the adapters this layer has, sorted
 * @param devices the types of the devices that hold each adapter's tensors, such as {@code cpu}, sorted
 * @param quantizationBackend null, as PEFT 0.21 has it for every layer of LoRA
 */
public record LayerStatus(
        String name,
        String type,
        boolean enabled,
        List<String> activeAdapters,
        List<String> mergedAdapters,
        Map<String, Common<Boolean>> requiresGrad,
        List<String> availableAdapters,
        Map<String, List<String>> devices,
        @Nullable String quantizationBackend) {}
