package org.lora4j.merge;

import java.nio.file.Path;

/**
 * An adapter and how much of it counts.
 *
 * @param folder with {@code adapter_config.json} and tensors, as PEFT writes them
 * @param weight a factor of the adapter's scale, PEFT's {@code set_scale}
 */
public record WeightedAdapter(Path folder, double weight) {
    public WeightedAdapter {
        if (!Float.isFinite((float) weight)) {
            throw new IllegalArgumentException("the weight of adapter " + folder + " is " + weight
                    + ": it must be finite in float32; pass a number such as 0.5");
        }
    }
}
