package org.lora4j.layer;

import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.jspecify.annotations.Nullable;
import org.lora4j.ops.Tensors;

/**
 * An adapter's own copy of a parameter of the base model: of a module in {@code modules_to_save}, or a trained bias.
 *
 * <p>While the adapter is active the parameter holds the copy, otherwise the base model's data. Both exist throughout, so
 * switching moves no data and changes no bits.
 */
public final class SavedParameter implements AutoCloseable {
    private final Tensor parameter;
    private final Tensor copy;
    /** The base model's data while the copy is in its place. */
    private @Nullable Tensor base;

    /**
     * @param parameter the parameter in the base model
     * @param value the adapter's value, of the parameter's shape; copied
     */
    public SavedParameter(Tensor parameter, Tensor value) {
        try (NoGradGuard noGrad = new NoGradGuard()) {
            this.parameter = Tensors.keep(new Tensor(parameter));
            this.copy = Tensors.keep(value.detach()
                    .to(parameter.device(), Tensors.type(parameter))
                    .contiguous()
                    .clone());
        }
    }

    /** The adapter's value; while active, the data the model computes with. */
    public Tensor value() {
        return copy;
    }

    /** The parameter of the base model, a leaf that gets the gradients while this adapter is active. */
    public Tensor parameter() {
        return parameter;
    }

    /** Puts the copy into the model; does nothing if it is there. */
    public void activate() {
        if (base == null) {
            base = Tensors.keep(parameter.detach());
            parameter.set_data(copy);
        }
    }

    /** Puts the base model's data back; does nothing if it is there. */
    public void deactivate() {
        if (base != null) {
            parameter.set_requires_grad(false);
            parameter.set_data(base);
            base.close();
            base = null;
        }
    }

    /** Leaves the copy in the model for good: the base model's data is released. */
    public void keepActive() {
        activate();
        if (base != null) {
            base.close();
            base = null;
        }
    }

    /** Whether the model computes with the copy now. */
    public boolean isActive() {
        return base != null;
    }

    @Override
    public void close() {
        deactivate();
        parameter.close();
        copy.close();
    }
}
