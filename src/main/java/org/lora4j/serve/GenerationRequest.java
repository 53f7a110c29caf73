package org.lora4j.serve;

import java.util.List;

/**
 * Asks for the continuation of a prompt.
 *
 * @param prompt token ids, at least one
 * @param adapters the adapters to apply; none for the base
 * @param sampling how tokens are chosen
 * @param ignoreEnd whether to go on after the model's end token
 */
public record GenerationRequest(long[] prompt, List<AdapterUse> adapters, Sampling sampling, boolean ignoreEnd) {
    public GenerationRequest {
        PoolOptions.require(prompt.length >= 1, "prompt", "empty", "at least one token");
        adapters = List.copyOf(adapters);
    }
}
