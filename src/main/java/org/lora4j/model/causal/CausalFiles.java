package org.lora4j.model.causal;

import java.io.IOException;
import java.nio.channels.Channels;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.StringTensorDict;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.AtomicFile;
import org.lora4j.format.DType;
import org.lora4j.format.StrictJson;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;
import tools.jackson.databind.json.JsonMapper;

/** Puts checkpoints of Hugging Face into models, and models into checkpoints. */
final class CausalFiles {
    /** What travels with the weights: the tokenizer's files and the defaults of generation. */
    private static final List<String> COMPANIONS = List.of(
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "added_tokens.json",
            "tokenizer.model",
            "vocab.json",
            "merges.txt",
            "chat_template.jinja",
            "chat_template.json");

    /** The types LibTorch computes a model in, by their names in config.json. */
    private static final Map<ScalarType, String> TYPES = Map.of(
            ScalarType.Float, "float32",
            ScalarType.Double, "float64",
            ScalarType.BFloat16, "bfloat16",
            ScalarType.Half, "float16");

    private static final Map<DType, ScalarType> STORED = Map.of(
            DType.F32, ScalarType.Float,
            DType.F64, ScalarType.Double,
            DType.BF16, ScalarType.BFloat16,
            DType.F16, ScalarType.Half);

    private static final long CONFIG_BYTES = 16 << 20;

    private CausalFiles() {}

    static CausalLM load(Path folder, @Nullable ScalarType type) throws IOException {
        CausalConfig config = CausalConfig.read(folder);
        if (type != null && !TYPES.containsKey(type)) {
            throw new IllegalArgumentException("type is " + type + " but must be Float, Double, BFloat16 or Half");
        }
        try (PointerScope scope = new PointerScope();
                MappedTensors files = TensorFiles.open(folder)) {
            Map<String, long[]> found = new LinkedHashMap<>();
            files.names().forEach(name -> found.put(name, files.info(name).shape()));
            Parameters.check(config, found, folder.toString());
            ScalarType target = type == null ? storedType(config, files, folder) : type;
            CausalLM model = new CausalLM(config, folder);
            boolean tied = tied(config, files);
            StringTensorDict parameters = model.named_parameters();
            for (long i = 0; i < parameters.size(); i++) {
                String name = parameters.get(i).key().getString();
                if (!(tied && name.equals(Parameters.HEAD))) {
                    fill(parameters.get(i).value(), files.tensor(name).to(target));
                }
            }
            if (tied) {
                fill(model.lm_head.weight(), model.model.embed_tokens.weight().detach());
            }
            model.eval();
            return model;
        }
    }

    /** As in transformers, a head in the checkpoint that differs from the embedding is used for itself. */
    private static boolean tied(CausalConfig config, MappedTensors files) {
        return config.tieWordEmbeddings()
                && (!files.names().contains(Parameters.HEAD)
                        || files.tensor(Parameters.HEAD).equal(files.tensor(Parameters.EMBEDDING)));
    }

    private static void fill(Tensor parameter, Tensor data) {
        parameter.requires_grad_(false);
        parameter.set_data(data);
    }

    private static ScalarType storedType(CausalConfig config, MappedTensors files, Path folder) {
        Set<DType> types = new TreeSet<>();
        for (String name : Parameters.of(config).keySet()) {
            if (files.names().contains(name)) {
                types.add(files.info(name).dtype());
            }
        }
        ScalarType type = STORED.get(types.iterator().next());
        if (types.size() != 1 || type == null) {
            throw new IllegalArgumentException(folder + " holds weights of type " + types
                    + ", which no model computes in as they are: name the type to convert them to, as in "
                    + "CausalLM.load(folder, ScalarType.Float)");
        }
        return type;
    }

    static void save(CausalLM model, Path folder, long maxShardBytes) throws IOException {
        Path source = model.source();
        Files.createDirectories(folder);
        if (Files.isSameFile(source, folder)) {
            throw new IllegalArgumentException(folder + " is the folder the model was loaded from, and its weights may "
                    + "still be mapped from there: save into another folder");
        }
        try (PointerScope scope = new PointerScope()) {
            boolean tied = model.isTied();
            Map<String, Tensor> tensors = new LinkedHashMap<>();
            StringTensorDict parameters = model.named_parameters();
            for (long i = 0; i < parameters.size(); i++) {
                String name = parameters.get(i).key().getString();
                if (!(tied && name.equals(Parameters.HEAD))) {
                    tensors.put(name, parameters.get(i).value());
                }
            }
            TensorFiles.writeCheckpoint(folder, tensors, TensorFiles.METADATA, maxShardBytes);
        }
        for (String name : COMPANIONS) {
            Path file = source.resolve(name);
            if (Files.isRegularFile(file)) {
                AtomicFile.write(folder.resolve(name), out -> Files.copy(file, Channels.newOutputStream(out)));
            }
        }
        byte[] json = new JsonMapper().writerWithDefaultPrettyPrinter().writeValueAsBytes(config(model, source));
        AtomicFile.write(
                folder.resolve("config.json"),
                out -> Channels.newOutputStream(out).write(json));
    }

    /** The source's config.json with what may have changed since: the type, the layers and whether the head is tied. */
    private static Map<String, @Nullable Object> config(CausalLM model, Path source) throws IOException {
        Map<String, @Nullable Object> config = StrictJson.readObject(source.resolve("config.json"), CONFIG_BYTES);
        String type = TYPES.get(model.dtype());
        if (config.containsKey("torch_dtype") || !config.containsKey("dtype")) {
            config.put("torch_dtype", type);
        }
        config.replace("dtype", type);
        config.put("tie_word_embeddings", model.isTied());
        List<Boolean> layers = model.config().slidingLayers();
        if (!layers.equals(CausalConfig.read(source).slidingLayers())) {
            config.put("num_hidden_layers", layers.size());
            if (config.containsKey("layer_types") || layers.contains(true)) {
                config.put(
                        "layer_types",
                        layers.stream()
                                .map(slides -> slides ? ConfigReader.SLIDING : ConfigReader.FULL)
                                .toList());
            }
        }
        return config;
    }
}
