package org.lora4j.model;

import java.io.IOException;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Device;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.Tensor;
import org.lora4j.config.BiasMode;
import org.lora4j.config.LoraConfig;
import org.lora4j.format.AdapterFolder;
import org.lora4j.format.TensorFile;
import org.lora4j.layer.ActiveAdapters;
import org.lora4j.layer.LoraLayer;
import org.lora4j.layer.LoraLinear;
import org.lora4j.layer.LoraWeights;
import org.lora4j.layer.PooledRows;
import org.lora4j.ops.Tensors;

/**
 * A base model whose linear layers take the adapters of each row from a pool: any number of adapters can come and go, and
 * none is ever attached to a layer. Where {@link LoraModel} holds a few adapters and does everything with them, this holds
 * none and only applies them.
 *
 * <p>Adapters of linear layers are hosted: LoRA and rsLoRA of any rank, rank and alpha patterns included. What changes more
 * than {@code s B A} of some linear layers (DoRA, biases, saved modules, embeddings, trained tokens) is refused by name.
 *
 * <p>Adapters may be read on other threads while forward passes run.
 *
 * @param <M> the type of the base model
 */
public final class HostModel<M extends Module> implements AutoCloseable {
    private final M base;
    private final ActiveAdapters active = new ActiveAdapters();
    private final Injector injector;
    private final Device device;

    private HostModel(M base) {
        this.base = base;
        this.injector = new Injector(base, active);
        try (PointerScope scope = new PointerScope()) {
            Map<String, Tensor> parameters = Parameters.of(base);
            parameters.values().forEach(parameter -> parameter.set_requires_grad(false));
            injector.inject(injector.linear());
            device = Tensors.keep(
                    new Device(parameters.values().iterator().next().device()));
        }
    }

    /**
     * Freezes a model and puts layers that take adapters from a pool in place of all its linear layers.
     *
     * @throws IllegalArgumentException if the model has no linear layer a Java object holds
     */
    public static <M extends Module> HostModel<M> of(M base) {
        return new HostModel<>(base);
    }

    /** The base model, whose {@code forward} applies what {@link #rows} says. */
    public M base() {
        return base;
    }

    /** Where the model's weights are, and adapters belong. */
    public Device device() {
        return device;
    }

    /**
     * Gives the rows of the batches on this thread their adapters until the scope is closed. Without it the model computes
     * the base.
     */
    public LoraModel.Scope rows(PooledRows rows) {
        PooledRows before = active.pooled();
        active.pooled(rows);
        return () -> active.pooled(before);
    }

    /**
     * Checks an adapter's files against the model without reading the factors.
     *
     * @return the memory the adapter takes
     * @throws IllegalArgumentException listing every tensor that does not fit, or naming what cannot be hosted
     * @throws IOException if a file cannot be read or is defective
     */
    public long inspect(Path folder) throws IOException {
        try (PointerScope scope = new PointerScope()) {
            return AdapterImage.bytes(sources(folder).values());
        }
    }

    /**
     * Reads an adapter into host memory, from PEFT's folder.
     *
     * @throws IllegalArgumentException listing every tensor that does not fit, or naming what cannot be hosted
     * @throws IOException if a file cannot be read or is defective
     */
    public AdapterImage read(Path folder) throws IOException {
        try (PointerScope scope = new PointerScope();
                TensorFile file = TensorFile.open(AdapterFolder.tensors(folder))) {
            return new AdapterImage(sources(folder), file, device.is_cuda());
        }
    }

    /** The factors of an adapter, mapped from its file, in this scope. */
    private Map<String, AdapterImage.Source> sources(Path folder) throws IOException {
        LoraConfig config = injector.resolve(AdapterFiles.readConfig(folder));
        check(config, folder);
        Map<String, LoraLayer> layers = injector.targets(config);
        layers.forEach((path, layer) -> {
            if (!(layer instanceof LoraLinear)) {
                throw new IllegalArgumentException("the adapter in " + folder + " adapts '" + path + "', a "
                        + layer.type() + "; a pool takes adapters of linear layers only");
            }
        });
        FileKeys keys = new FileKeys(layers.values());
        var contents = new AdapterFiles.Contents(layers, keys, Map.of(), Map.of(), Map.of());
        Map<String, Tensor> values = AdapterFiles.read(folder, config, contents, Parameters.of(base), false);
        Map<String, AdapterImage.Source> sources = new LinkedHashMap<>();
        layers.forEach((path, layer) -> sources.put(
                path,
                new AdapterImage.Source(
                        factor(values, keys.factor(layer, LoraWeights.Part.A)),
                        factor(values, keys.factor(layer, LoraWeights.Part.B)),
                        config.scale(layer.configPath()))));
        return sources;
    }

    private static AdapterImage.Factor factor(Map<String, Tensor> values, String key) {
        return new AdapterImage.Factor(key, Objects.requireNonNull(values.get(key), key));
    }

    private static void check(LoraConfig config, Path folder) {
        Map<String, Boolean> more = new LinkedHashMap<>();
        more.put("use_dora", config.useDora());
        more.put("lora_bias", config.loraBias());
        more.put("bias = " + config.bias().jsonName(), config.bias() != BiasMode.NONE);
        more.put("modules_to_save", !config.modulesToSave().isEmpty());
        more.put("trainable_token_indices", !config.trainableTokenIndices().isEmpty());
        more.put("alora_invocation_tokens", !config.invocationTokens().isEmpty());
        more.put("target_parameters", !config.targetParameters().isEmpty());
        more.put("ensure_weight_tying", config.ensureWeightTying());
        more.put("layer_replication", !config.layerReplication().isEmpty());
        more.put(
                "init_lora_weights = " + config.initLoraWeights(),
                config.initLoraWeights().changesBase());
        more.values().removeIf(set -> !set);
        if (!more.isEmpty()) {
            Set<String> named = more.keySet();
            throw new IllegalArgumentException("the adapter in " + folder + " has " + String.join(", ", named)
                    + ", which changes more than rows of a batch can have of their own: merge it into a base of its own, "
                    + "or convert it to plain LoRA");
        }
    }

    /** The paths of the layers that take adapters. */
    public List<String> layers() {
        return List.copyOf(injector.injected().keySet());
    }

    /** Puts the model's own layers back. */
    @Override
    public void close() {
        injector.removeAll();
        device.close();
    }
}
