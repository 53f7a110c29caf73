package org.lora4j.layer;

import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.bytedeco.pytorch.Tensor;
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
    private final Map<String, TokenRows> tokens;
    private boolean trainable;

    /**
     * @param weights the factors by layer path, in the order of the model's modules
     * @param saved copies of base parameters by parameter path, such as {@code lm_head.weight}
     */
    public Adapter(
            String name, LoraConfig config, Map<String, LoraWeights> weights, Map<String, SavedParameter> saved) {
        this(name, config, weights, saved, Map.of());
    }

    /**
     * As {@link #Adapter(String, LoraConfig, Map, Map)}, with rows of weights.
     *
     * @param tokens the rows it replaces, by the path of the module that has them
     */
    public Adapter(
            String name,
            LoraConfig config,
            Map<String, LoraWeights> weights,
            Map<String, SavedParameter> saved,
            Map<String, TokenRows> tokens) {
        this.tokens = Collections.unmodifiableMap(new LinkedHashMap<>(tokens));
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

    /** The rows of weights it replaces, by the path of the module. */
    public Map<String, TokenRows> tokens() {
        return tokens;
    }

    /** All tensors to train: the factors with what belongs to them, and the copied parameters. */
    public List<Tensor> parameters() {
        List<Tensor> parameters = new ArrayList<>();
        weights.values().forEach(each -> parameters.addAll(each.trained()));
        saved.values().stream().filter(SavedParameter::trains).forEach(each -> parameters.add(each.parameter()));
        tokens.values().forEach(each -> parameters.add(each.rows()));
        return parameters;
    }

    /** Whether its tensors get gradients while it is active. */
    public boolean trainable() {
        return trainable;
    }

    public void trainable(boolean train) {
        trainable = train;
    }

    /**
     * Sets the scale at every layer to a multiple of what the configuration gives there: PEFT's {@code set_scale}. 1 is as
     * configured, 0 switches the adapter off. Weights it is merged into keep the scale they were merged with until it is
     * merged anew, and a saved configuration does not change.
     *
     * @throws IllegalArgumentException if the factor is not finite
     */
    public void setScale(double factor) {
        checkFactor(factor);
        weights.values().forEach(each -> each.setScale(factor));
    }

    /**
     * Multiplies the present scale at every layer: PEFT's {@code scale_layer}, and with 1 / factor its {@code
     * unscale_layer(factor)}. {@code setScale(1)} is {@code unscale_layer()}. Otherwise as {@link #setScale}.
     *
     * @throws IllegalArgumentException if the factor is not finite
     */
    public void multiplyScale(double factor) {
        checkFactor(factor);
        weights.values().forEach(each -> each.multiplyScale(factor));
    }

    /** Scales every layer by r and lora_alpha alone, for {@code PeftCompat.HOTSWAP_IGNORES_PATTERNS}. */
    public void ignorePatterns() {
        LoraConfig plain =
                config.toBuilder().rankPattern(Map.of()).alphaPattern(Map.of()).build();
        weights.forEach((path, each) -> each.multiplyScale(plain.scale(path) / each.scale()));
    }

    private void checkFactor(double factor) {
        if (!Double.isFinite(factor)) {
            throw new IllegalArgumentException("scale factor " + factor + " of adapter \"" + name
                    + "\" must be a finite number; 1 is the scale as configured");
        }
    }

    /** Sets whether the tensors record gradients now. */
    public void requiresGrad(boolean requires) {
        weights.values().forEach(each -> each.requiresGrad(requires));
        tokens.values().forEach(each -> each.rows().set_requires_grad(requires));
        saved.values().stream()
                .filter(each -> each.isActive() && each.trains())
                .forEach(each -> each.parameter().set_requires_grad(requires));
    }

    @Override
    public void close() {
        weights.values().forEach(LoraWeights::close);
        saved.values().forEach(SavedParameter::close);
        tokens.values().forEach(TokenRows::close);
    }
}
