package org.lora4j.model;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.config.BiasMode;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.LoraConfigBuilder;
import org.lora4j.config.TaskType;
import org.lora4j.ops.LibTorch;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;

/**
 * Writes the adapters of src/test/resources/golden/written_by_lora4j, whose outputs PEFT then computes:
 * {@code check_lora4j.py} in src/test/python/golden. Run again only to add a case; the argument is the folder.
 */
final class AdaptersForPeft {
    private final Path folder;

    private AdaptersForPeft(Path folder) {
        this.folder = folder;
    }

    public static void main(String[] arguments) throws IOException {
        LibTorch.load();
        torch.manual_seed(20);
        AdaptersForPeft write = new AdaptersForPeft(Path.of(arguments[0]));
        write.toy("mlp", "mlp", config(3, 7, "lin0", "lin1"), torch.randn(5, 10));
        write.toy("mlp_rslora", "mlp", config(5, 2.5, "lin1").useRslora(true), torch.randn(5, 10));
        write.toy("mlp_bias_all", "mlp", config(1, 3, "lin0").bias(BiasMode.ALL), torch.randn(5, 10));
        write.toy("mlp_saved", "mlp", config(2, 3, "lin0").modulesToSave("lin1"), torch.randn(5, 10));
        Tensor ids = torch.randint(100, new long[] {3, 10}).to(ScalarType.Long);
        write.toy("embconv", "embconv", config(3, 5, "emb", "conv1d", "lin0"), ids);
        write.toy("hfmlp", "hfmlp", config(4, 6, "c_fc", "c_proj").fanInFanOut(true), torch.randn(2, 3, 6));
        write.toy("conv1d", "conv1d", config(2, 5, "conv1d"), torch.randn(3, 3, 11));
        write.toy("conv2d", "conv2d", config(3, 2, "conv2d", "lin0"), torch.randn(2, 5, 7, 9));
        write.toy("conv2d_groups", "conv2d_groups", config(4, 3, "conv2d"), torch.randn(2, 6, 5, 5));
        write.toy("conv3d", "conv3d", config(2, 3, "conv3d"), torch.randn(2, 2, 5, 4, 3));

        write.lm("llama", "llama", config(4, 7, "q_proj", "v_proj", "down_proj"));
        write.lm(
                "llama_patterns",
                "llama",
                config(4, 9, "q_proj", "k_proj", "up_proj")
                        .rankPattern(Map.of("layers.1.self_attn.q_proj", 1))
                        .alphaPattern(Map.of("k_proj", 2.5)));
        write.lm(
                "llama_lora_only",
                "llama_bias",
                config(3, 5, "q_proj", "gate_proj").bias(BiasMode.LORA_ONLY));
        write.lm("llama_saved", "llama", config(3, 5, "o_proj").modulesToSave("lm_head"));
        write.lm("llama_embedding", "llama", config(3, 5, "embed_tokens", "v_proj"));
        write.lm("qwen3", "qwen3", config(3, 5, "q_proj", "v_proj").layersToTransform(1));

        write.toy(
                "moe",
                "moe",
                config(3, 7, "shared")
                        .targetParameters("experts.gate_up_proj", "experts.down_proj", "router.weight")
                        .rankPattern(Map.of("experts.down_proj", 1)),
                torch.randn(2, 4, 6));
        write.toy("moe_beside", "moe", config(2, 5, "head").targetParameters("mix"), torch.randn(2, 4, 6));
        write.toy(
                "moe_transposed",
                "moe_transposed",
                config(4, 3).targetParameters("experts.down_proj", "experts.gate_up_proj"),
                torch.randn(2, 4, 6));
    }

    private static LoraConfigBuilder config(int r, double alpha, String... targets) {
        return LoraConfig.builder().r(r).loraAlpha(alpha).targetModules(targets);
    }

    private void toy(String name, String model, LoraConfigBuilder config, Tensor input) throws IOException {
        write(name, model, "toys/" + model + ".safetensors", config.build(), "input", input);
    }

    private void lm(String name, String model, LoraConfigBuilder config) throws IOException {
        try (MappedTensors golden = TensorFiles.open(
                GoldenCase.GOLDEN.resolve("models").resolve(model).resolve("expected.safetensors"))) {
            LoraConfig causal = config.taskType(TaskType.CAUSAL_LM).build();
            write(name, model, "models/" + model, causal, "input_ids", golden.tensor("input_ids"));
        }
    }

    private void write(String name, String model, String base, LoraConfig config, String key, Tensor input)
            throws IOException {
        Path to = Files.createDirectories(folder.resolve(name));
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            Module net = GoldenCase.base(base, model, ScalarType.Float);
            LoraModel<Module> adapted = Lora.wrap(net, config, "default");
            adapted.trainableParameters().forEach(p -> p.normal_().mul_(new Scalar(0.3)));
            adapted.save(to.resolve("adapter"), "default");
            TensorFiles.write(to.resolve("input.safetensors"), Map.of(key, input), TensorFiles.METADATA);
            Files.writeString(to.resolve("case.json"), """
                    {
                      "model": "%s",
                      "base": "%s"
                    }
                    """.formatted(model, base));
        }
    }
}
