package org.lora4j.model;

import java.util.List;
import java.util.stream.Collectors;
import org.bytedeco.pytorch.Generator;
import org.jspecify.annotations.Nullable;
import org.lora4j.layer.ActiveAdapters;
import org.lora4j.layer.FusedMode;
import org.lora4j.layer.TrainingPath;

/**
 * How the layers of a model compute their updates while gradients are recorded.
 *
 * <p>On the fused path the factors are not part of the autograd graph: {@code backward} accumulates their gradients, while
 * {@code autograd::grad} for a factor and second derivatives are errors. Use {@link FusedMode#OFF} for those.
 */
public final class TrainingPaths {
    private final ActiveAdapters active;
    private final Injector injector;
    private final AttachedAdapters adapters;

    TrainingPaths(ActiveAdapters active, Injector injector, AttachedAdapters adapters) {
        this.active = active;
        this.injector = injector;
        this.adapters = adapters;
    }

    /** Chooses the way for all linear layers; {@link FusedMode#AUTO} is the start. */
    public void mode(FusedMode mode) {
        active.fused(mode);
    }

    /**
     * Gives an adapter's dropout a generator of its own, so that its masks do not depend on what else draws random numbers;
     * null for LibTorch's default generator. The caller closes it after the last pass.
     *
     * @throws IllegalArgumentException if there is no adapter of this name
     */
    public void dropoutGenerator(String adapter, @Nullable Generator generator) {
        active.generator(adapters.get(adapter).name(), generator);
    }

    /** Which way each adapted layer took in its last pass with gradients, and why. */
    public List<TrainingPath> taken() {
        return injector.injected().values().stream()
                .map(layer -> layer.adapters().trainingPath())
                .toList();
    }

    /** {@link #taken()} for reading, a line a layer. */
    @Override
    public String toString() {
        return taken().stream()
                .map(each -> each.kind().name().toLowerCase(java.util.Locale.ROOT) + "  " + each.module()
                        + (each.reason().isEmpty() ? "" : "  (" + each.reason() + ")"))
                .collect(Collectors.joining("\n"));
    }
}
