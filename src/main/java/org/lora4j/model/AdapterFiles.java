package org.lora4j.model;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.lora4j.config.LoraConfig;
import org.lora4j.format.AdapterConfigJson;
import org.lora4j.format.AdapterFolder;
import org.lora4j.layer.Adapter;
import org.lora4j.layer.Conversion;
import org.lora4j.layer.Factors;
import org.lora4j.layer.LoraLayer;
import org.lora4j.layer.LoraWeights;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;
import org.lora4j.ops.Tensors;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * An adapter in a folder, as PEFT 0.21 writes it: {@code adapter_config.json} and {@code adapter_model.safetensors}, whose
 * keys are the paths of the base model behind {@code base_model.model.} and carry no adapter name.
 */
final class AdapterFiles {
    private static final Logger LOG = LoggerFactory.getLogger(AdapterFiles.class);

    static final String TENSORS = "adapter_model.safetensors";

    private AdapterFiles() {}

    static LoraConfig readConfig(Path folder) throws IOException {
        return AdapterConfigJson.read(folder.resolve(AdapterConfigJson.FILE_NAME));
    }

    /** Writes an adapter; each file is replaced in a single step, the configuration last. */
    static void write(Path folder, Adapter adapter, Map<String, LoraLayer> layers) throws IOException {
        try (PointerScope scope = new PointerScope()) {
            write(folder, adapter.config(), tensors(adapter, layers));
        }
    }

    /** Likewise as an adapter of twice the rank for the base without its residual weights. */
    static void writeConverted(Path folder, Adapter adapter, Map<String, LoraLayer> layers) throws IOException {
        LoraConfig converted = Conversion.config(adapter.config());
        try (PointerScope scope = new PointerScope();
                NoGradGuard noGrad = new NoGradGuard()) {
            Map<String, Tensor> tensors = tensors(adapter, layers);
            FileKeys keys = keys(adapter, layers);
            adapter.weights().forEach((path, weights) -> {
                LoraLayer layer = layers.get(path);
                if (layer != null) {
                    Factors trained =
                            new Factors(weights.a().detach(), weights.b().detach());
                    Factors initial = weights.initial();
                    if (initial == null) {
                        initial = new Factors(torch.zeros_like(trained.a()), torch.zeros_like(trained.b()));
                    }
                    Factors plain = Conversion.subtractInitial(trained, initial);
                    tensors.put(keys.factor(layer, LoraWeights.Part.A), plain.a());
                    tensors.put(keys.factor(layer, LoraWeights.Part.B), plain.b());
                }
            });
            write(folder, converted, tensors);
        }
    }

    private static FileKeys keys(Adapter adapter, Map<String, LoraLayer> layers) {
        List<LoraLayer> own = new ArrayList<>();
        layers.forEach((path, layer) -> {
            if (adapter.weights().containsKey(path)) {
                own.add(layer);
            }
        });
        return new FileKeys(own);
    }

    private static Map<String, Tensor> tensors(Adapter adapter, Map<String, LoraLayer> layers) {
        FileKeys keys = keys(adapter, layers);
        Map<String, Tensor> tensors = new LinkedHashMap<>();
        adapter.weights().forEach((path, weights) -> {
            LoraLayer layer = layers.get(path);
            if (layer != null) {
                weights.parts().forEach((part, value) -> tensors.put(keys.factor(layer, part), value.detach()));
            }
        });
        adapter.tokens()
                .forEach((path, rows) ->
                        tensors.put(keys.tokens(path), rows.rows().detach()));
        adapter.saved().forEach((path, saved) -> {
            if (saved.trains()) {
                tensors.put(keys.saved(path), saved.value().detach());
            }
            saved.following()
                    .forEach(other -> tensors.put(
                            keys.saved(other + ".weight"), saved.value().detach()));
        });
        return tensors;
    }

    private static void write(Path folder, LoraConfig config, Map<String, Tensor> tensors) throws IOException {
        Files.createDirectories(folder);
        TensorFiles.write(folder.resolve(TENSORS), tensors, TensorFiles.METADATA);
        LoraConfig saved = config.toBuilder()
                .inferenceMode(true)
                .peftVersion(LoraConfig.PEFT_VERSION)
                .build();
        AdapterConfigJson.write(folder.resolve(AdapterConfigJson.FILE_NAME), saved);
    }

    /** The keys of an adapter's tensors. */
    static Set<String> keys(Path folder) throws IOException {
        try (MappedTensors tensors = TensorFiles.open(AdapterFolder.tensors(folder))) {
            return Set.copyOf(tensors.names());
        }
    }

    /**
     * What an adapter's file holds.
     *
     * @param layers the layers the configuration means
     * @param keys the names of the adapter's tensors
     * @param saved the parameters it keeps copies of
     * @param others the shapes of further tensors by key
     * @param repeats keys that may repeat the tensor of another key, transposed for an embedding's factors
     */
    record Contents(
            Map<String, LoraLayer> layers,
            FileKeys keys,
            Map<String, Tensor> saved,
            Map<String, long[]> others,
            Map<String, String> repeats) {}

    /**
     * The values of an adapter by key of the file, checked against what the model expects. The tensors belong to the
     * caller's scope.
     *
     * @param contents what the file must have
     * @param base all parameters of the base model; a file may repeat some of them unchanged
     * @param lenient whether missing and unexpected tensors are only logged, as PEFT does at best
     * @throws IllegalArgumentException listing all tensors that are missing, unexpected or of another shape
     */
    static Map<String, Tensor> read(
            Path folder, LoraConfig config, Contents contents, Map<String, Tensor> base, boolean lenient)
            throws IOException {
        Map<String, long[]> expected = new LinkedHashMap<>(contents.others());
        contents.layers().forEach((path, layer) -> {
            int rank = config.rankFor(layer.configPath());
            for (LoraWeights.Part part : LoraWeights.Part.of(config)) {
                expected.put(contents.keys().factor(layer, part), layer.shape(part, rank));
            }
        });
        contents.saved()
                .forEach((path, parameter) -> expected.put(contents.keys().saved(path), Tensors.shape(parameter)));
        Path file = AdapterFolder.tensors(folder);
        Map<String, Tensor> values = new LinkedHashMap<>();
        List<String> problems = new ArrayList<>();
        List<String> strays = new ArrayList<>();
        try (MappedTensors tensors = TensorFiles.open(file)) {
            for (String key : new TreeSet<>(expected.keySet())) {
                if (!tensors.names().contains(key)) {
                    strays.add("missing " + key);
                }
            }
            for (String key : tensors.names()) {
                Tensor value = tensors.tensor(key);
                long[] shape = expected.get(key);
                String repeated = contents.repeats().get(key);
                if (repeated != null) {
                    if (tensors.names().contains(repeated) && !repeats(value, tensors.tensor(repeated), repeated)) {
                        problems.add(key + " differs from " + repeated + ", which ensure_weight_tying ties it to");
                    }
                } else if (shape == null) {
                    if (!repeatsBase(key, value, base)) {
                        strays.add("unexpected " + key);
                    }
                } else if (!Arrays.equals(shape, Tensors.shape(value))) {
                    problems.add(key + " is " + Tensors.describe(value) + ", expected " + Arrays.toString(shape));
                } else {
                    values.put(key, value);
                }
            }
        }
        if (!lenient) {
            problems.addAll(strays);
        } else if (!strays.isEmpty()) {
            LOG.warn("{} does not fit this model: {}", file, strays);
        }
        if (!problems.isEmpty()) {
            throw new IllegalArgumentException(file + " does not fit this model and " + AdapterConfigJson.FILE_NAME
                    + ": load the base model it was made for. " + String.join("; ", problems));
        }
        return values;
    }

    private static boolean repeats(Tensor value, Tensor source, String key) {
        return value.equal(key.contains(".lora_embedding_") ? source.t() : source);
    }

    /** PEFT writes the embeddings of the base beside an adapter that targets one; equal to ours they mean nothing. */
    private static boolean repeatsBase(String key, Tensor value, Map<String, Tensor> base) {
        if (!key.startsWith(FileKeys.PREFIX)) {
            return false;
        }
        Tensor own = base.get(FileKeys.baseParameter(key));
        return own != null
                && Tensors.type(own) == Tensors.type(value)
                && Arrays.equals(Tensors.shape(own), Tensors.shape(value))
                && own.detach().equal(value);
    }
}
