package org.lora4j.layer;

import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Set;
import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.jspecify.annotations.Nullable;
import org.lora4j.ops.Tensors;

/**
 * An adapter's own copy of a parameter of the base model: of a module in {@code modules_to_save}, a trained bias, or the
 * residual weight that an initialisation such as PiSSA leaves beside its factors, which does not train.
 *
 * <p>While the adapter is active the parameter holds the copy, otherwise the base model's data. Both exist throughout, so
 * switching moves no data and changes no bits.
 */
public final class SavedParameter implements AutoCloseable {
    private final Tensor parameter;
    private final Tensor copy;
    private final boolean trains;
    /** The base model's data while the copy is in its place. */
    private @Nullable Tensor base;
    /** Layers that compute with this parameter too while it is active, with their own weights. */
    private final Map<String, Follower> following = new LinkedHashMap<>();

    private record Follower(LinearImpl layer, Tensor own) {}

    /**
     * @param parameter the parameter in the base model
     * @param value the adapter's value, of the parameter's shape; copied
     */
    public SavedParameter(Tensor parameter, Tensor value) {
        this(parameter, value, true);
    }

    /** A residual weight: as {@link #SavedParameter(Tensor, Tensor)}, but it neither trains nor is saved. */
    public static SavedParameter residual(Tensor parameter, Tensor value) {
        return new SavedParameter(parameter, value, false);
    }

    private SavedParameter(Tensor parameter, Tensor value, boolean trains) {
        this.trains = trains;
        try (NoGradGuard noGrad = new NoGradGuard()) {
            this.parameter = Tensors.keep(new Tensor(parameter));
            this.copy = Tensors.keep(value.detach()
                    .to(parameter.device(), Tensors.type(parameter))
                    .contiguous()
                    .clone());
        }
    }

    /** Whether the copy trains and is part of the adapter's files; a residual weight is not. */
    public boolean trains() {
        return trains;
    }

    /** The adapter's value; while active, the data the model computes with. */
    public Tensor value() {
        return copy;
    }

    /** The parameter of the base model, a leaf that gets the gradients while this adapter is active. */
    public Tensor parameter() {
        return parameter;
    }

    /**
     * Makes a layer compute with this parameter while it is active, so that both use and train one copy: what {@code
     * ensure_weight_tying} asks of a layer that shares the parameter's memory in the base model.
     *
     * @param path the layer's
     * @param layer outlives this object
     */
    public void follow(String path, LinearImpl layer) {
        following.put(path, new Follower(layer, Tensors.keep(new Tensor(layer.weight()))));
    }

    /** The paths of the layers that compute with this parameter too. */
    public Set<String> following() {
        return Collections.unmodifiableSet(following.keySet());
    }

    /** Puts the copy into the model; does nothing if it is there. */
    public void activate() {
        if (base == null) {
            base = Tensors.keep(parameter.detach());
            parameter.set_data(copy);
            following.values().forEach(each -> each.layer().weight(parameter));
        }
    }

    /** Puts the base model's data back; does nothing if it is there. */
    public void deactivate() {
        if (base != null) {
            parameter.set_requires_grad(false);
            following.values().forEach(each -> each.layer().weight(each.own()));
            parameter.set_data(base);
            base.close();
            base = null;
        }
    }

    /** Leaves the copy in the model for good: the base model's data is released. */
    public void keepActive() {
        activate();
        following.values().forEach(each -> {
            each.own().set_data(copy);
            each.layer().weight(each.own());
        });
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
        following.values().forEach(each -> each.own().close());
        parameter.close();
        copy.close();
    }
}
