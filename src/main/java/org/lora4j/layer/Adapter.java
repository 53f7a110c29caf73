package org.lora4j.layer;

import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.Map;
import org.lora4j.config.LoraConfig;

/**
 * An adapter: its name, its configuration and all its tensors.
 *
 * <p>An adapter made by {@code LoraModel} is attached to that model's layers. One made from factors alone, as a combination
 * is, belongs to no model until it is added to one.
 */
public final class Adapter implements AutoCloseable {
    private final String name;
    private final LoraConfig config;
    private final Map<String, LoraWeights> weights;
    private final Map<String, SavedParameter> saved;
    private boolean trainable;

    /**
     * @param weights the factors by layer path, in the order of the model's modules
     * @param saved copies of base parameters by parameter path, such as {@code lm_head.weight}
     */
    public Adapter(
            String name, LoraConfig config, Map<String, LoraWeights> weights, Map<String, SavedParameter> saved) {
        this.name = name;
        this.config = config;
        this.weights = Collections.unmodifiableMap(new LinkedHashMap<>(weights));
        this.saved = Collections.unmodifiableMap(new LinkedHashMap<>(saved));
    }

    public String name() {
        return name;
    }

    public LoraConfig config() {
        return config;
    }

    /** The factors by layer path. */
    public Map<String, LoraWeights> weights() {
        return weights;
    }

    /** The adapter's copies of base parameters, by parameter path. */
    public Map<String, SavedParameter> saved() {
        return saved;
    }

    /** Whether its tensors get gradients while it is active. */
    public boolean trainable() {
        return trainable;
    }

    public void trainable(boolean train) {
        trainable = train;
    }

    /** Sets whether the tensors record gradients now. */
    public void requiresGrad(boolean requires) {
        weights.values().forEach(each -> each.requiresGrad(requires));
        saved.values().stream()
                .filter(SavedParameter::isActive)
                .forEach(each -> each.parameter().set_requires_grad(requires));
    }

    @Override
    public void close() {
        weights.values().forEach(LoraWeights::close);
        saved.values().forEach(SavedParameter::close);
    }
}
