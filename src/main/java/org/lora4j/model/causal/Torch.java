package org.lora4j.model.causal;

import org.bytedeco.pytorch.DoubleOptional;
import org.bytedeco.pytorch.TensorOptional;
import org.lora4j.ops.LibTorch;
import org.lora4j.ops.Tensors;

/** Absent arguments of LibTorch calls, made once. */
final class Torch {
    static {
        LibTorch.load();
    }

    static final TensorOptional NO_TENSOR = Tensors.keep(new TensorOptional());
    static final DoubleOptional NO_DOUBLE = Tensors.keep(new DoubleOptional());

    private Torch() {}
}
