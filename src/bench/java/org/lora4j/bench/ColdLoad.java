package org.lora4j.bench;

import java.io.IOException;
import java.io.RandomAccessFile;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.config.LoraConfig;
import org.lora4j.format.AdapterConfigJson;
import org.lora4j.model.HostModel;
import org.lora4j.model.causal.CausalLM;
import org.lora4j.ops.TensorFiles;
import org.lora4j.serve.AdapterPool;
import org.lora4j.serve.AdapterRegistry;
import org.lora4j.serve.Lease;
import org.lora4j.serve.PoolOptions;
import tools.jackson.databind.json.JsonMapper;

/**
 * How long an adapter of a Llama of 7 billion weights takes from the miss until a request may use it, its file being in the
 * page cache. The base's file is sparse: its weights are never touched, only their shapes are needed.
 */
final class ColdLoad {
    private static final int LAYERS = 32;
    private static final int HIDDEN = 4096;
    private static final int MLP = 11008;
    private static final int RANK = 16;

    private ColdLoad() {}

    static void run(Path work) throws Exception {
        Path base = base(work.resolve("base"));
        Path folder = adapter(work.resolve("adapter"));
        CausalLM model = CausalLM.load(base);
        HostModel<CausalLM> host = HostModel.of(model);
        List<Double> times = new ArrayList<>();
        long bytes = host.inspect(folder);
        AdapterRegistry registry = new AdapterRegistry();
        try (AdapterPool pool = new AdapterPool(registry, host, PoolOptions.of(2L << 30))) {
            for (int i = 0; i < 24; i++) {
                String name = "a" + i;
                registry.register(name, folder);
                long start = System.nanoTime();
                try (Lease lease = pool.acquire(name, Duration.ofSeconds(30))) {
                    if (i >= 4) {
                        times.add((System.nanoTime() - start) / 1e6);
                    }
                }
                pool.remove(name);
            }
        }
        ServeBench.row(
                ServeBench.text(
                        "cold adapter of a 7B shape (r=16, all projections, bfloat16, %d MB) from the page cache until a "
                                + "request may use it",
                        bytes / 1_000_000),
                ServeBench.text(
                        "%.0f ms median, %.0f ms at most of %d",
                        Hosted.quantile(times, 0.5), Hosted.quantile(times, 1), times.size()),
                "<= 50 ms");
        host.close();
        model.close();
    }

    private static Map<String, long[]> shapes(int layer) {
        String path = "model.layers." + layer + ".";
        Map<String, long[]> shapes = new LinkedHashMap<>();
        for (String name : List.of("q_proj", "k_proj", "v_proj", "o_proj")) {
            shapes.put(path + "self_attn." + name, new long[] {HIDDEN, HIDDEN});
        }
        shapes.put(path + "mlp.gate_proj", new long[] {MLP, HIDDEN});
        shapes.put(path + "mlp.up_proj", new long[] {MLP, HIDDEN});
        shapes.put(path + "mlp.down_proj", new long[] {HIDDEN, MLP});
        return shapes;
    }

    private static Path base(Path folder) throws IOException {
        Files.createDirectories(folder);
        Files.writeString(folder.resolve("config.json"), """
                {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "head_dim": 128,
                 "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32,
                 "num_hidden_layers": 32, "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
                 "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false, "bos_token_id": 1,
                 "eos_token_id": 2, "attention_bias": false, "mlp_bias": false}
                """);
        Map<String, long[]> shapes = new LinkedHashMap<>();
        shapes.put("model.embed_tokens.weight", new long[] {32000, HIDDEN});
        shapes.put("lm_head.weight", new long[] {32000, HIDDEN});
        shapes.put("model.norm.weight", new long[] {HIDDEN});
        for (int layer = 0; layer < LAYERS; layer++) {
            shapes(layer).forEach((path, shape) -> shapes.put(path + ".weight", shape));
            shapes.put("model.layers." + layer + ".input_layernorm.weight", new long[] {HIDDEN});
            shapes.put("model.layers." + layer + ".post_attention_layernorm.weight", new long[] {HIDDEN});
        }
        Map<String, Object> header = new LinkedHashMap<>();
        long end = 0;
        for (Map.Entry<String, long[]> entry : shapes.entrySet()) {
            long size = 2;
            for (long dimension : entry.getValue()) {
                size *= dimension;
            }
            header.put(
                    entry.getKey(),
                    Map.of("dtype", "BF16", "shape", entry.getValue(), "data_offsets", new long[] {end, end + size}));
            end += size;
        }
        String text = JsonMapper.builder().build().writeValueAsString(header);
        byte[] json = (text + " ".repeat((8 - text.length() % 8) % 8)).getBytes(StandardCharsets.UTF_8);
        try (RandomAccessFile file =
                new RandomAccessFile(folder.resolve("model.safetensors").toFile(), "rw")) {
            file.write(ByteBuffer.allocate(8)
                    .order(ByteOrder.LITTLE_ENDIAN)
                    .putLong(json.length)
                    .array());
            file.write(json);
            file.setLength(8 + json.length + end);
        }
        return folder;
    }

    private static Path adapter(Path folder) throws IOException {
        Files.createDirectories(folder);
        Map<String, Tensor> tensors = new LinkedHashMap<>();
        try (PointerScope scope = new PointerScope()) {
            for (int layer = 0; layer < LAYERS; layer++) {
                shapes(layer).forEach((path, shape) -> {
                    tensors.put("base_model.model." + path + ".lora_A.weight", random(RANK, shape[1]));
                    tensors.put("base_model.model." + path + ".lora_B.weight", random(shape[0], RANK));
                });
            }
            TensorFiles.write(folder.resolve("adapter_model.safetensors"), tensors, TensorFiles.METADATA);
        }
        AdapterConfigJson.write(
                folder.resolve(AdapterConfigJson.FILE_NAME),
                LoraConfig.builder()
                        .r(RANK)
                        .loraAlpha(32.0)
                        .targetModules(Hosted.ALL)
                        .build());
        return folder;
    }

    private static Tensor random(long rows, long columns) {
        return torch.randn(rows, columns).to(ScalarType.BFloat16);
    }
}
