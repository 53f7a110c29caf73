package org.lora4j.model;

import java.util.List;
import java.util.Map;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * A model with a stack of layers that can be rebuilt from repeated ones, as adapters with {@code layer_replication} ask for
 * (arXiv:2312.15166 grows models so). {@code CausalLM} is one; a model of one's own becomes one by implementing this.
 */
public interface ReplicableLayers {
    /** The number of layers of the stack. */
    int layerCount();

    /**
     * Replaces the stack. The layers of the new one are named by their new positions and are modules of their own, copies
     * included, but {@link #share} the weights of those they repeat. Whatever depends on the number of layers, as caches
     * do, follows. Called within a {@code PointerScope} that ends before the layers are used: keep their handles, as
     * {@code Tensors.keep} does.
     *
     * @param sources for each layer of the new stack the layer of the present one that it repeats
     * @return puts the present stack back when closed
     */
    LoraModel.Scope replicateLayers(List<Integer> sources);

    /** Makes the parameters and buffers of a copy use the memory of a module of the same structure, and its training mode. */
    static void share(Module source, Module copy) {
        Map<String, Tensor> from = Parameters.of(source);
        Parameters.of(copy).forEach((name, parameter) -> share(name, from.get(name), parameter));
        Map<String, Tensor> buffers = Parameters.buffers(source);
        Parameters.buffers(copy).forEach((name, buffer) -> share(name, buffers.get(name), buffer));
        copy.train(source.is_training());
    }

    private static void share(String name, @Nullable Tensor from, Tensor to) {
        if (from == null) {
            throw new IllegalArgumentException("the copy of a layer has a tensor " + name
                    + ", but the layer has none: make it of the same structure");
        }
        to.set_requires_grad(false);
        to.set_data(from.detach());
        to.set_requires_grad(from.requires_grad());
    }
}
