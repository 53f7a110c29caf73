package org.lora4j.model.causal;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Random;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.config.LoraConfig;
import org.lora4j.format.AdapterConfigJson;
import org.lora4j.ops.TensorFiles;

/** Models and adapters for the tests of serving, which are in another package. */
public final class ServedModels {
    private ServedModels() {}

    /** The base model of the demo: bfloat16, with a tokenizer. */
    public static final Path DEMO = Path.of("src/test/resources/demo/base");

    /** A checkpoint with random float32 weights of odd sizes. */
    public static Path tiny(Path folder) throws IOException {
        return TinyModels.write(folder, TinyModels.LLAMA, ScalarType.Float, 3);
    }

    /** The same with a sliding window. */
    public static Path sliding(Path folder) throws IOException {
        String json = TinyModels.with(
                "\"model_type\": \"mistral\"", "\"architectures\": [\"MistralForCausalLM\"]", "\"sliding_window\": 5");
        return TinyModels.write(folder, json, ScalarType.Float, 4);
    }

    /** An adapter with random factors on some layers, strong enough to change what a model says. */
    public static Path adapter(
            Path folder, Path model, int rank, double alpha, long seed, double strength, String... targets)
            throws IOException {
        CausalConfig config = CausalConfig.read(model);
        Map<String, Tensor> tensors = new LinkedHashMap<>();
        Random random = new Random(seed);
        Files.createDirectories(folder);
        try (PointerScope scope = new PointerScope()) {
            for (int layer = 0; layer < config.layers(); layer++) {
                for (String target : targets) {
                    boolean attends = target.matches("[qkvo]_proj");
                    String path =
                            "base_model.model.model.layers." + layer + (attends ? ".self_attn." : ".mlp.") + target;
                    int in = target.equals("o_proj")
                            ? config.queryWidth()
                            : target.equals("down_proj") ? config.intermediateSize() : config.hiddenSize();
                    int out = switch (target) {
                        case "q_proj" -> config.queryWidth();
                        case "k_proj", "v_proj" -> config.keyWidth();
                        case "gate_proj", "up_proj" -> config.intermediateSize();
                        default -> config.hiddenSize();
                    };
                    tensors.put(path + ".lora_A.weight", factor(random, rank, in, 1 / Math.sqrt(in)));
                    tensors.put(path + ".lora_B.weight", factor(random, out, rank, strength));
                }
            }
            TensorFiles.write(folder.resolve("adapter_model.safetensors"), tensors, TensorFiles.METADATA);
        }
        LoraConfig adapter = LoraConfig.builder()
                .r(rank)
                .loraAlpha(alpha)
                .targetModules(targets)
                .build();
        AdapterConfigJson.write(folder.resolve(AdapterConfigJson.FILE_NAME), adapter);
        return folder;
    }

    private static Tensor factor(Random random, int rows, int columns, double scale) {
        float[] values = new float[rows * columns];
        for (int i = 0; i < values.length; i++) {
            values[i] = (float) (random.nextGaussian() * scale);
        }
        return Tensor.create(values, rows, columns);
    }
}
