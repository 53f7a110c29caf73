package org.lora4j.combine;

import java.util.List;
import java.util.Objects;
import java.util.stream.Stream;
import org.bytedeco.pytorch.Tensor;
import org.jspecify.annotations.Nullable;
import org.lora4j.ops.Tensors;

/**
 * A layer of a combined adapter. The tensors are in the caller's scope unless they are kept.
 *
 * @param a A, (r, in) or (r, in, *kernel)
 * @param b B, (out, r) or (out, r / groups, 1, ...)
 * @param bias the bias on B, (out), or null
 * @param magnitude DoRA's magnitude, (out), or null
 */
public record LayerResult(
        Tensor a, Tensor b, @Nullable Tensor bias, @Nullable Tensor magnitude, LayerReport report)
        implements AutoCloseable {
    private List<Tensor> tensors() {
        return Stream.of(a, b, bias, magnitude).filter(Objects::nonNull).toList();
    }

    /** Lets the tensors live until {@link #close}. */
    public LayerResult kept() {
        tensors().forEach(Tensors::keep);
        return this;
    }

    @Override
    public void close() {
        tensors().forEach(Tensor::close);
    }
}
