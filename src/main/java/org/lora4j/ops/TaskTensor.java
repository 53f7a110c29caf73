package org.lora4j.ops;

import org.bytedeco.pytorch.Tensor;

/**
 * One tensor of a combination.
 *
 * @param tensor the values, of any shape and strides
 * @param weight what they count in the sum; it has no say in the election of signs
 * @param pruning which of them stay
 */
public record TaskTensor(Tensor tensor, double weight, Pruning pruning) {
    public TaskTensor(Tensor tensor, double weight) {
        this(tensor, weight, Pruning.none());
    }
}
