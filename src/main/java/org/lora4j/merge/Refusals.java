package org.lora4j.merge;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.LoraConfig;

/** Adapters that no change of weights can stand for. */
final class Refusals {
    private Refusals() {}

    /** The reasons an adapter cannot be merged into any checkpoint. */
    static List<String> of(AdapterSource adapter) {
        LoraConfig config = adapter.config();
        List<String> reasons = new ArrayList<>();
        if (!config.invocationTokens().isEmpty()) {
            reasons.add("alora_invocation_tokens is " + config.invocationTokens()
                    + ": the adapter applies from these tokens on, and a weight is the same for all; keep it unmerged");
        }
        if (!config.layerReplication().isEmpty()) {
            reasons.add("layer_replication is " + config.layerReplication()
                    + ": the adapted model has other layers than the checkpoint; save the merged model instead");
        }
        if (config.initLoraWeights().changesBase()) {
            reasons.add("init_lora_weights is " + config.initLoraWeights()
                    + ": the adapter belongs to a base that was changed when training began; save it converted to plain"
                    + " LoRA, or, if the checkpoint is that changed base, set init_lora_weights to true");
        }
        Map<String, @Nullable Object> unsupported = new LinkedHashMap<>(config.nonDefaultUnsupported());
        unsupported.remove("target_parameters");
        unsupported.forEach((key, value) -> reasons.add(
                key + " is " + value + ": merging this variant would compute something else; keep it unmerged"));
        return reasons.stream().map(reason -> adapter + ": " + reason).toList();
    }
}
