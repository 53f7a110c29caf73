package org.lora4j.layer;

import org.bytedeco.pytorch.Generator;
import org.bytedeco.pytorch.GeneratorOptional;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.jspecify.annotations.Nullable;
import org.lora4j.ops.Tensors;

/**
 * Dropout whose mask is not kept: the generator's state before the mask was drawn is, 5 KB on a CPU and 16 bytes on CUDA,
 * and gives the same mask again. The masks are those of LibTorch's own dropout from the same generator.
 */
final class Dropout implements AutoCloseable {
    private final double probability;
    private final Tensor state;
    private final Generator generator;

    /**
     * Notes where a generator is now.
     *
     * @param like a tensor on the device of the generator
     * @param own the generator to draw from, or null for LibTorch's default one
     */
    Dropout(double probability, Tensor like, @Nullable Generator own) {
        this.probability = probability;
        this.generator = own == null ? defaultGenerator(like) : own;
        this.state = Tensors.keep(generator.get_state());
    }

    static Generator defaultGenerator(Tensor like) {
        return like.is_cpu()
                ? torch.getDefaultCPUGenerator()
                : torch.globalContext().defaultGenerator(like.device());
    }

    double probability() {
        return probability;
    }

    /** The masks of the forward pass, which move the generator on. Call {@link Masks#next} on consecutive rows. */
    Masks draw() {
        return new Masks(generator, probability);
    }

    /** The same masks again, without moving the generator. */
    Masks again() {
        Generator copy = generator.clone();
        copy.set_state(state);
        return new Masks(copy, probability);
    }

    /** Masks of consecutive rows. */
    record Masks(Generator generator, double probability) {
        /** A mask of the shape of {@code like}, in its type: 0 where dropped, else {@code 1 / (1 - probability)}. */
        Tensor next(Tensor like) {
            Tensor mask = torch.empty_like(like);
            if (probability >= 1) {
                return mask.zero_();
            }
            return mask.bernoulli_(1 - probability, new GeneratorOptional(generator))
                    .div_(new Scalar(1 - probability));
        }
    }

    @Override
    public void close() {
        state.close();
    }
}
