package org.lora4j.format;

import java.io.Closeable;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.TreeMap;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.BiasMode;
import org.lora4j.config.LoraConfig;
import org.lora4j.format.LoraKey.Role;

/**
 * An adapter in PEFT's folder, open to be written in another layout.
 *
 * @param modules the adapted modules with their tensors, by path; ranks and alphas are those of the configuration
 */
record PeftFolder(Path folder, LoraConfig config, TensorFile file, List<ForeignModule> modules) implements Closeable {
    /** The fields of a configuration that change what an adapter computes and have no place in kohya's layout. */
    private static final List<String> MEANINGFUL = List.of(
            "alora_invocation_tokens",
            "arrow_config",
            "kasa_config",
            "layer_replication",
            "megatron_config",
            "monteclora_config",
            "target_parameters",
            "trainable_token_indices",
            "use_bdlora",
            "use_qalora",
            "velora_config");

    /** Opens an adapter; tensors that do not fit are added to the problems. */
    static PeftFolder open(Path folder, List<String> problems) throws IOException {
        LoraConfig config = AdapterConfigJson.read(folder.resolve(AdapterConfigJson.FILE_NAME));
        TensorFile file = TensorFile.open(AdapterFolder.tensors(folder));
        try {
            Map<String, ForeignModule> modules = new TreeMap<>(JsonText.BY_CODE_POINT);
            List<TensorInfo> sorted = new ArrayList<>(file.tensors().values());
            sorted.sort(Comparator.comparing(TensorInfo::name, JsonText.BY_CODE_POINT));
            for (TensorInfo tensor : sorted) {
                LoraKey key = PeftKeys.parse(tensor.name());
                if (key == null) {
                    problems.add(tensor.name() + " is no factor of a linear layer or a convolution");
                } else {
                    ForeignModule module =
                            modules.computeIfAbsent(key.module(), path -> new ForeignModule(key.part(), path));
                    module.path = key.module();
                    module.tensors.put(key.role(), tensor);
                }
            }
            for (ForeignModule module : modules.values()) {
                module.check(file, problems);
                int rank = config.rankFor(module.path);
                if (module.rank > 0 && module.rank != rank) {
                    problems.add(
                            module.keys() + " have rank " + module.rank + ", and " + rank + " in the configuration");
                }
                module.alpha = config.useRslora() ? config.scale(module.path) * rank : config.alphaFor(module.path);
            }
            return new PeftFolder(folder, config, file, List.copyOf(modules.values()));
        } catch (Throwable failure) {
            file.close();
            throw failure;
        }
    }

    /** Adds what the configuration asks for beyond the tensors. */
    void refuseForKohya(List<String> problems) {
        for (String field : MEANINGFUL) {
            Object value = config.otherFields().get(field);
            if (value != null && !value.equals(false) && !value.equals(List.of()) && !value.equals(Map.of())) {
                problems.add(field + " = " + value + " changes what the adapter computes");
            }
        }
        if (config.initLoraWeights().changesBase()) {
            problems.add("init_lora_weights = " + config.initLoraWeights()
                    + " changed the base; save the adapter converted to plain LoRA first");
        }
        if (config.bias() != BiasMode.NONE) {
            problems.add("bias = " + config.bias().jsonName() + " trains biases of the base");
        }
        boolean magnitudes = modules.stream().anyMatch(module -> module.tensors.containsKey(Role.MAGNITUDE));
        if (magnitudes != Boolean.TRUE.equals(config.otherFields().get("use_dora"))) {
            problems.add("use_dora contradicts the tensors");
        }
    }

    /** The entries of the configuration that PEFT knows. */
    Map<String, @Nullable Object> knownFields() {
        Map<String, @Nullable Object> fields = AdapterConfigJson.entries(config);
        fields.keySet().removeAll(Objects.requireNonNull(config.unknownFields()).keySet());
        return fields;
    }

    @Override
    public void close() throws IOException {
        file.close();
    }
}
