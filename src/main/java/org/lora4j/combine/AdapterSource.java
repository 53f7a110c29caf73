package org.lora4j.combine;

import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.TreeMap;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.bytedeco.pytorch.Tensor;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.LoraConfig;
import org.lora4j.format.AdapterConfigJson;
import org.lora4j.format.AdapterFolder;
import org.lora4j.format.TensorInfo;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;

/** An adapter in PEFT's folder, mapped: its layers and what else it keeps, without a model. */
final class AdapterSource implements AutoCloseable {
    static final String PREFIX = "base_model.model.";

    private static final Pattern KEY =
            Pattern.compile("(.+)\\.(lora_A\\.weight|lora_B\\.weight|lora_B\\.bias|lora_embedding_A|lora_embedding_B"
                    + "|lora_magnitude_vector|lora_magnitude_vector\\.weight)");

    private static final String BASE_LAYER = ".base_layer.";

    /** One adapted module: the keys of its tensors by the part of the name that says what they are. */
    static final class Layer {
        private final Map<String, String> keys = new TreeMap<>();

        boolean isEmbedding() {
            return keys.containsKey("lora_embedding_A");
        }

        /** The key of A. */
        String a() {
            return Objects.requireNonNull(keys.get(isEmbedding() ? "lora_embedding_A" : "lora_A.weight"));
        }

        String b() {
            return Objects.requireNonNull(keys.get(isEmbedding() ? "lora_embedding_B" : "lora_B.weight"));
        }

        @Nullable
        String bias() {
            return keys.get("lora_B.bias");
        }

        @Nullable
        String magnitude() {
            String plain = keys.get("lora_magnitude_vector");
            return plain == null ? keys.get("lora_magnitude_vector.weight") : plain;
        }

        private boolean isComplete() {
            return isEmbedding()
                    ? keys.containsKey("lora_embedding_B")
                    : keys.containsKey("lora_A.weight") && keys.containsKey("lora_B.weight");
        }
    }

    private final String name;
    private final LoraConfig config;
    private final MappedTensors tensors;
    private final Map<String, Layer> layers;
    private final List<String> others;

    private AdapterSource(String name, LoraConfig config, MappedTensors tensors) {
        this.name = name;
        this.config = config;
        this.tensors = tensors;
        Map<String, Layer> found = new TreeMap<>();
        List<String> left = new ArrayList<>();
        for (String key : tensors.names()) {
            Matcher matcher = KEY.matcher(key.startsWith(PREFIX) ? key.substring(PREFIX.length()) : key);
            if (matcher.matches()) {
                found.computeIfAbsent(matcher.group(1), module -> new Layer())
                        .keys
                        .put(matcher.group(2), key);
            } else {
                left.add(key);
            }
        }
        layers = Collections.unmodifiableMap(found);
        others = List.copyOf(left);
    }

    /**
     * Opens an adapter and checks it.
     *
     * @throws IllegalArgumentException listing what does not fit together
     * @throws IOException if a file cannot be read or is defective
     */
    static AdapterSource open(Path folder) throws IOException {
        LoraConfig config = AdapterConfigJson.read(folder.resolve(AdapterConfigJson.FILE_NAME));
        MappedTensors tensors = TensorFiles.open(AdapterFolder.tensors(folder));
        try {
            AdapterSource source = new AdapterSource(folder.toString(), config, tensors);
            source.check();
            return source;
        } catch (Throwable failure) {
            tensors.close();
            throw failure;
        }
    }

    private void check() {
        if (!config.nonDefaultUnsupported().isEmpty()) {
            throw new IllegalArgumentException(name + ": the configuration sets " + config.nonDefaultUnsupported()
                    + ", whose updates lora4j does not know");
        }
        if (config.initLoraWeights().changesBase()) {
            throw new IllegalArgumentException(name + ": started from initLoraWeights=" + config.initLoraWeights()
                    + ", which changed its base: save it with saveConverted (in PEFT, save_pretrained with"
                    + " path_initial_model_for_weight_conversion) first");
        }
        List<String> problems = new ArrayList<>();
        layers.forEach((module, layer) -> {
            if (!layer.isComplete()) {
                problems.add(module + " has only " + layer.keys.keySet());
                return;
            }
            long[] a = info(layer.a()).shape();
            int rank = config.rankFor(configPath(module));
            if (a.length == 0 || a[0] != rank) {
                problems.add(
                        layer.a() + " has " + (a.length == 0 ? 0 : a[0]) + " rows, and the configuration rank " + rank);
            }
            if (config.useDora() != (layer.magnitude() != null)) {
                problems.add(
                        module + (config.useDora() ? " lacks its magnitude" : " has a magnitude without use_dora"));
            }
        });
        if (layers.isEmpty()) {
            problems.add("it has no factors");
        }
        if (!problems.isEmpty()) {
            throw new IllegalArgumentException(name + ": " + String.join("; ", problems) + ": check the folder");
        }
    }

    private TensorInfo info(String key) {
        return tensors.info(key);
    }

    /** The folder as it was named. */
    String name() {
        return name;
    }

    LoraConfig config() {
        return config;
    }

    MappedTensors tensors() {
        return tensors;
    }

    /** The adapted modules by their path in the file. */
    Map<String, Layer> layers() {
        return layers;
    }

    /** The keys of modules and biases kept whole. */
    List<String> others() {
        return others;
    }

    /** The module a configuration knows a layer by: an attention for its output projection. */
    static String configPath(String module) {
        int inner = module.indexOf(BASE_LAYER);
        return inner < 0 ? module : module.substring(0, inner);
    }

    /** A layer as a member of a combination; the tensors share the mapped file. */
    LayerInput.Member member(String module, int adapter, double weight) {
        Layer layer = Objects.requireNonNull(layers.get(module), module);
        return new LayerInput.Member(
                adapter,
                tensors.tensor(layer.a()),
                tensors.tensor(layer.b()),
                config.scale(configPath(module)),
                weight,
                tensor(layer.bias()),
                tensor(layer.magnitude()));
    }

    private @Nullable Tensor tensor(@Nullable String key) {
        return key == null ? null : tensors.tensor(key);
    }

    /** The keys of the tensors of a layer of this kind. */
    Map<String, String> keys(String module) {
        Map<String, String> keys = new LinkedHashMap<>();
        String path = PREFIX + module;
        boolean embedding = Objects.requireNonNull(layers.get(module), module).isEmbedding();
        keys.put("a", path + (embedding ? ".lora_embedding_A" : ".lora_A.weight"));
        keys.put("b", path + (embedding ? ".lora_embedding_B" : ".lora_B.weight"));
        keys.put("bias", path + ".lora_B.bias");
        keys.put("magnitude", path + ".lora_magnitude_vector");
        return keys;
    }

    @Override
    public void close() {
        tensors.close();
    }
}
