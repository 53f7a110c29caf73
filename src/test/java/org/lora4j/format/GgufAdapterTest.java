package org.lora4j.format;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.lora4j.config.LoraConfig;

/** Adapters as GGUF, compared with what the gguf package wrote; make_gguf.py makes and checks them. */
class GgufAdapterTest {
    @TempDir
    Path folder;

    private static Path golden() {
        return Golden.path("gguf");
    }

    private static Set<String> modules() throws IOException {
        Set<String> modules = new java.util.TreeSet<>();
        try (TensorFile file = TensorFile.open(golden().resolve("adapter_model.safetensors"))) {
            for (String key : file.tensors().keySet()) {
                modules.add(key.replace("base_model.model.", "").replaceFirst("\\.lora_[AB]\\.weight", ""));
            }
        }
        modules.add("model.layers.0.self_attn.v_proj");
        modules.add("model.layers.1.self_attn.v_proj");
        return modules;
    }

    private static void assertSame(Path actual, Path expected) throws IOException {
        try (TensorFile ours = TensorFile.open(actual);
                TensorFile theirs = TensorFile.open(expected)) {
            assertThat(ours.tensors().keySet()).isEqualTo(theirs.tensors().keySet());
            for (TensorInfo info : theirs.tensors().values()) {
                TensorInfo own = ours.tensor(info.name());
                assertThat(own.dtype()).isEqualTo(info.dtype());
                assertThat(own.shape()).isEqualTo(info.shape());
                assertThat(ours.read(info.name())).as(info.name()).isEqualTo(theirs.read(info.name()));
            }
        }
    }

    @Test
    void whatIsWrittenIsWhatTheGgufPackageWrites() throws IOException {
        Path file = folder.resolve("ours.gguf");
        GgufAdapter.fromPeft(golden(), golden(), file);
        assertSame(file, golden().resolve("adapter.gguf"));
        try (GgufFile ours = GgufFile.open(file);
                GgufFile theirs = GgufFile.open(golden().resolve("adapter.gguf"))) {
            assertThat(ours.values()).isEqualTo(theirs.values()).containsEntry("adapter.lora.alpha", 7.0);
            assertThat(ours.metadata()).containsEntry("general.architecture", "llama");
        }
    }

    @Test
    void whatIsReadIsTheAdapterItCameFrom() throws IOException {
        LoraConfig config = GgufAdapter.toPeft(golden().resolve("adapter.gguf"), golden(), modules(), folder);
        assertSame(folder.resolve("adapter_model.safetensors"), golden().resolve("adapter_model.safetensors"));
        LoraConfig original = AdapterConfigJson.read(golden().resolve("adapter_config.json"));
        for (String module : modules()) {
            assertThat(config.rankFor(module)).isEqualTo(3);
            assertThat(config.scale(module)).isEqualTo(original.scale(module));
        }
        assertThat(AdapterConfigJson.read(folder.resolve("adapter_config.json")))
                .isEqualTo(config);
    }

    /** An adapter of one module of a model without another order of rows. */
    private Path adapter(DType dtype, Map<String, Object> fields, String key, long... b) throws IOException {
        Path adapter = Files.createDirectories(folder.resolve("peft"));
        TensorSource zeros =
                out -> SafetensorsWriter.writeFully(out, ByteBuffer.allocate((int) (2 * b[0] * dtype.bits() / 8)));
        SafetensorsWriter writer = new SafetensorsWriter(Map.of("format", "pt"));
        writer.add(key + ".lora_B.weight", dtype, b, zeros);
        writer.add(key + ".lora_A.weight", dtype, new long[] {b[1], b[0]}, zeros);
        writer.write(adapter.resolve(AdapterFolder.SAFETENSORS));
        var config = LoraConfig.builder().r(2).loraAlpha(8).targetModules("q_proj");
        fields.forEach(config::otherField);
        AdapterConfigJson.write(adapter.resolve(AdapterConfigJson.FILE_NAME), config.build());
        return adapter;
    }

    private Path config(String json) throws IOException {
        Path file = folder.resolve("config.json");
        Files.writeString(file, json);
        return file;
    }

    @ParameterizedTest
    @CsvSource({
        "qwen3, model.layers.7.self_attn.q_proj, blk.7.attn_q",
        "phi3, model.layers.0.mlp.gate_up_proj, blk.0.ffn_up",
        "gemma2, model.language_model.layers.10.mlp.down_proj, blk.10.ffn_down",
        "qwen2, lm_head, output"
    })
    void otherModelsHaveTheirNames(String type, String module, String name) throws IOException {
        Path base = config("{\"model_type\": \"" + type + "\"}");
        Path adapter = adapter(DType.BF16, Map.of(), "base_model.model." + module, 6, 2);
        Path file = folder.resolve("a.gguf");
        GgufAdapter.fromPeft(adapter, base, file);
        try (GgufFile written = GgufFile.open(file)) {
            assertThat(written.tensors()).containsOnlyKeys(name + ".weight.lora_a", name + ".weight.lora_b");
        }
        Path back = folder.resolve("back");
        GgufAdapter.toPeft(file, base, List.of(module), back);
        assertSame(back.resolve(AdapterFolder.SAFETENSORS), adapter.resolve(AdapterFolder.SAFETENSORS));
    }

    @Test
    void whatGgufHasNoPlaceForIsRefused() throws IOException {
        Path file = folder.resolve("a.gguf");
        Path qwen = config("{\"model_type\": \"qwen3\"}");
        Path odd = adapter(DType.F32, Map.of(), "base_model.model.model.layers.0.self_attn.z_proj", 6, 2);
        assertThatThrownBy(() -> GgufAdapter.fromPeft(odd, qwen, file))
                .hasMessageContaining("model.layers.0.self_attn.z_proj has no name among GGUF's for qwen3");
        String q = "base_model.model.model.layers.0.self_attn.q_proj";
        Path dora = adapter(DType.F32, Map.of("use_dora", true), q, 6, 2);
        assertThatThrownBy(() -> GgufAdapter.fromPeft(dora, qwen, file)).hasMessageContaining("use_dora");
        Path plain = adapter(DType.F32, Map.of(), q, 6, 2);
        Path bert = config("{\"model_type\": \"bert\"}");
        assertThatThrownBy(() -> GgufAdapter.fromPeft(plain, bert, file)).hasMessageContaining("model_type is bert");
        Path heads = config("{\"model_type\": \"llama\", \"num_attention_heads\": 2}");
        assertThatThrownBy(() -> GgufAdapter.fromPeft(plain, heads, file))
                .hasMessageContaining("are not the rows of 2 heads of an even size");
        assertThat(file).doesNotExist();
        assertThatThrownBy(() -> GgufAdapter.toPeft(
                        golden().resolve("adapter.gguf"), config("{\"model_type\": \"qwen2\"}"), modules(), folder))
                .hasMessageContaining("general.architecture is llama, not qwen2");
    }

    @Test
    void brokenFilesAreRefusedWithAReason() throws IOException {
        byte[] good = Files.readAllBytes(golden().resolve("adapter.gguf"));
        Random random = new Random(1);
        Path file = folder.resolve("broken.gguf");
        List<String> reasons = new ArrayList<>();
        for (int i = 0; i < 2000; i++) {
            byte[] bytes = good.clone();
            int header = 1800;
            switch (i % 4) {
                case 0 -> bytes[4 + random.nextInt(header)] ^= (byte) (1 << random.nextInt(8));
                case 1 -> bytes = java.util.Arrays.copyOf(bytes, random.nextInt(bytes.length));
                case 2 ->
                    ByteBuffer.wrap(bytes)
                            .order(ByteOrder.LITTLE_ENDIAN)
                            .putLong(4 + random.nextInt(header), random.nextLong() >> random.nextInt(64));
                default -> bytes[8 + random.nextInt(header)] = (byte) random.nextInt();
            }
            Files.write(file, bytes);
            try {
                GgufAdapter.toPeft(file, golden(), modules(), folder.resolve("out" + i));
            } catch (FormatException e) {
                assertThat(e.getMessage()).contains("broken.gguf");
                assertThat(folder.resolve("out" + i)).doesNotExist();
                reasons.add(e.getMessage());
            }
        }
        assertThat(reasons).hasSizeGreaterThan(1500);
    }
}
