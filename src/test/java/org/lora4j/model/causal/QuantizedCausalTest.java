package org.lora4j.model.causal;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.format.StrictJson;
import org.lora4j.layer.QuantizationOptions;
import org.lora4j.layer.QuantizedLinear;
import org.lora4j.model.Quantization;
import org.lora4j.ops.LibTorch;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;

/** Checkpoints that transformers has quantized with bitsandbytes; see src/test/python/quantization. */
class QuantizedCausalTest {
    private static final Path GOLDEN = Path.of("src/test/resources/golden");
    private static final Path QUANTIZED = GOLDEN.resolve("quantization");

    @TempDir
    Path folder;

    private PointerScope scope;
    private NoGradGuard noGrad;

    @BeforeEach
    void open() {
        LibTorch.load();
        scope = new PointerScope();
        noGrad = new NoGradGuard();
    }

    @AfterEach
    void close() {
        noGrad.close();
        scope.close();
    }

    private static Tensor ids() throws IOException {
        try (MappedTensors golden = TensorFiles.open(QUANTIZED.resolve("llama_nf4/expected.safetensors"))) {
            return golden.tensor("input_ids");
        }
    }

    private static QuantizationOptions options(String name) {
        return name.equals("llama_nf4") ? QuantizationOptions.nf4() : QuantizationOptions.int8();
    }

    @Test
    void logitsAreThoseOfTransformers() throws IOException {
        try (CausalLM model = CausalLM.load(QUANTIZED.resolve("llama_nf4"));
                MappedTensors golden = TensorFiles.open(QUANTIZED.resolve("llama_nf4/expected.safetensors"))) {
            assertThat(model.dtype()).isEqualTo(ScalarType.Float);
            assertThat(model.lm_head).isNotInstanceOf(QuantizedLinear.class);
            Tensor expected = golden.tensor("logits");
            Tensor logits = model.forward(golden.tensor("input_ids"));
            double largest = expected.abs().max().item_double();
            assertThat(logits.sub(expected).abs().max().item_double()).isLessThan(1e-5 * largest);
            long[][] tokens = model.generate(new long[][] {{1, 5, 9}}, GenerationOptions.greedy(4));
            assertThat(tokens[0].length).isGreaterThan(0);
        }
    }

    @ParameterizedTest
    @ValueSource(strings = {"llama_nf4", "llama_int8"})
    void aModelQuantizedHereIsTheOneTransformersSaves(String name) throws IOException {
        Path saved = folder.resolve(name);
        Tensor logits;
        try (CausalLM model = CausalLM.load(GOLDEN.resolve("models/llama"))) {
            Map<String, QuantizedLinear> layers = Quantization.quantize(model, options(name));
            assertThat(layers).hasSize(3 * 7).doesNotContainKey("lm_head");
            logits = model.forward(ids());
            model.save(saved);
            layers.values().forEach(QuantizedLinear::close);
        }
        try (MappedTensors ours = TensorFiles.open(saved);
                MappedTensors theirs = TensorFiles.open(QUANTIZED.resolve(name).resolve("model.safetensors"))) {
            assertThat(ours.names()).containsExactlyInAnyOrderElementsOf(theirs.names());
            for (String tensor : ours.names()) {
                assertThat(ours.tensor(tensor).equal(theirs.tensor(tensor)))
                        .as(tensor)
                        .isTrue();
            }
        }
        Map<?, ?> theirs = config(QUANTIZED.resolve(name));
        config(saved).forEach((key, value) -> {
            if (!name.equals("llama_int8") || !key.toString().startsWith("bnb_4bit")) {
                assertThat((Object) theirs.get(key)).as(key.toString()).isEqualTo(value);
            }
        });
        for (Path each : new Path[] {saved, QUANTIZED.resolve(name)}) {
            try (CausalLM model = CausalLM.load(each)) {
                assertThat(model.forward(ids()).equal(logits)).isTrue();
            }
        }
    }

    private static Map<?, ?> config(Path folder) throws IOException {
        return (Map<?, ?>)
                StrictJson.readObject(folder.resolve("config.json"), 1 << 20).get("quantization_config");
    }

    @Test
    void aCheckpointIsWrittenBackAsItWas() throws IOException {
        try (CausalLM model = CausalLM.load(QUANTIZED.resolve("llama_nf4"))) {
            model.save(folder.resolve("sharded"), 8000);
        }
        try (CausalLM model = CausalLM.load(folder.resolve("sharded"));
                CausalLM original = CausalLM.load(QUANTIZED.resolve("llama_nf4"))) {
            assertThat(model.forward(ids()).equal(original.forward(ids()))).isTrue();
        }
    }

    @Test
    void layersComputeInTheTypeOfTheConfiguration() throws IOException {
        try (CausalLM model = CausalLM.load(QUANTIZED.resolve("llama_nf4"), ScalarType.BFloat16)) {
            assertThat(model.dtype()).isEqualTo(ScalarType.BFloat16);
            Map<String, QuantizedLinear> none = Quantization.quantize(model, QuantizationOptions.nf4());
            assertThat(none).isEmpty();
            QuantizedLinear layer = (QuantizedLinear) model.model.layers.get(0).mlp.up_proj;
            assertThat(layer.computeType()).isEqualTo(ScalarType.Float);
            assertThat(model.forward(ids()).isfinite().all().item_bool()).isTrue();
        }
    }

    @Test
    void aDequantizedModelIsAPlainOne() throws IOException {
        try (CausalLM model = CausalLM.load(QUANTIZED.resolve("llama_nf4"))) {
            Tensor before = model.forward(ids());
            Quantization.dequantize(model, ScalarType.Float);
            model.save(folder.resolve("plain"));
            try (CausalLM plain = CausalLM.load(folder.resolve("plain"))) {
                double difference = plain.forward(ids()).sub(before).abs().max().item_double();
                assertThat(difference).isLessThan(1e-5 * before.abs().max().item_double());
            }
        }
        assertThat(StrictJson.readObject(folder.resolve("plain/config.json"), 1 << 20))
                .doesNotContainKey("quantization_config");
    }

    @Test
    void aComputeTypeThatIsNoneIsRefused() throws IOException {
        Path broken = folder.resolve("broken");
        Files.createDirectories(broken);
        Files.copy(QUANTIZED.resolve("llama_nf4/model.safetensors"), broken.resolve("model.safetensors"));
        String config = Files.readString(QUANTIZED.resolve("llama_nf4/config.json"));
        Files.writeString(
                broken.resolve("config.json"),
                config.replace("\"bnb_4bit_compute_dtype\": \"float32\"", "\"bnb_4bit_compute_dtype\": \"int8\""));
        assertThatThrownBy(() -> CausalLM.load(broken)).hasMessageContaining("bnb_4bit_compute_dtype is int8");
        Files.writeString(broken.resolve("config.json"), config.replace("bitsandbytes", "gptq"));
        assertThatThrownBy(() -> CausalLM.load(broken)).hasMessageContaining("that of bitsandbytes, or absent");
    }
}
