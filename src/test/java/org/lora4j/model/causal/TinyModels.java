package org.lora4j.model.causal;

import static org.bytedeco.pytorch.global.torch.manual_seed;
import static org.bytedeco.pytorch.global.torch.randn;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Random;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.ops.TensorFiles;

/** Checkpoints with random weights, of odd sizes. */
final class TinyModels {
    static final String LLAMA = """
            {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 41, "hidden_size": 24,
             "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
             "max_position_embeddings": 64, "bos_token_id": null, "eos_token_id": null, "rms_norm_eps": 1e-5,
             "torch_dtype": "float32", "tie_word_embeddings": false}
            """;

    private TinyModels() {}

    /** The configuration above with other or further fields, as JSON. */
    static String with(String... fields) {
        String json = LLAMA;
        for (String field : fields) {
            String key = field.substring(0, field.indexOf(':')).trim();
            json = json.replaceFirst(key + ": *(\\[[^\\]]*\\]|[^,}\\n]*)(, *)?", "");
            json = json.replaceFirst("\\{", "{" + java.util.regex.Matcher.quoteReplacement(field) + ", ");
        }
        return json.replaceFirst(",\\s*\\}\\s*$", "}");
    }

    /** Writes config.json and random weights of a seed. */
    static Path write(Path folder, String json, ScalarType type, long seed) throws IOException {
        Files.createDirectories(folder);
        Files.writeString(folder.resolve("config.json"), json);
        TensorFiles.write(folder.resolve("model.safetensors"), weights(json, type, seed), TensorFiles.METADATA);
        return folder;
    }

    static Map<String, Tensor> weights(String json, ScalarType type, long seed) {
        CausalConfig config = CausalConfig.parse(json);
        manual_seed(seed);
        Map<String, Tensor> tensors = new LinkedHashMap<>();
        Parameters.of(config).forEach((name, shape) -> {
            if (!(name.equals(Parameters.HEAD) && config.tieWordEmbeddings())) {
                tensors.put(name, random(shape, type));
            }
        });
        return tensors;
    }

    static Tensor random(long[] shape, ScalarType type) {
        try (PointerScope scope = new PointerScope()) {
            // Large enough for attention to be far from uniform.
            double width = shape.length == 2 ? 1.5 / Math.sqrt(shape[1]) : 0.5;
            Tensor tensor = randn(shape).mul(new Scalar(width));
            return org.lora4j.ops.Tensors.keep((shape.length == 1 ? tensor.add(new Scalar(1.0)) : tensor).to(type));
        }
    }

    static Tensor ids(Random random, int batch, int tokens, int vocab) {
        long[] ids = new long[batch * tokens];
        for (int i = 0; i < ids.length; i++) {
            ids[i] = random.nextInt(vocab);
        }
        return Tensor.create(ids, batch, tokens);
    }
}
