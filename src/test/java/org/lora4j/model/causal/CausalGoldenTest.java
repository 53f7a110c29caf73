package org.lora4j.model.causal;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.TreeMap;
import java.util.stream.Stream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;
import org.lora4j.ops.Tensors;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;
import tools.jackson.databind.json.JsonMapper;

/**
 * Logits and greedy tokens of transformers, for tiny random checkpoints of each family. See src/test/python/golden.
 *
 * <p>In float32 both sides compute the same sums in other orders: the difference stays within 1e-5 of the largest logit,
 * some 80 units of rounding. In bfloat16 each side is off the exact logits by rounding of its own; transformers' distance
 * from its float32 logits is the measure, and two such errors may add.
 */
class CausalGoldenTest {
    private static final Logger LOG = LoggerFactory.getLogger(CausalGoldenTest.class);
    private static final Path CASES = Path.of("src/test/resources/golden/models");
    private static final double FLOAT_TOLERANCE = 1e-5;
    private static final Map<String, Map<String, Double>> REPORT = new TreeMap<>();

    static Stream<String> cases() throws IOException {
        try (Stream<Path> folders = Files.list(CASES)) {
            return folders.map(f -> f.getFileName().toString()).sorted().toList().stream();
        }
    }

    @Test
    void everyFamilyIsThere() throws IOException {
        assertThat(cases().map(c -> c.replaceFirst("[0-9]?_.*", ""))).contains("llama", "mistral", "qwen2", "qwen3");
        assertThat(cases()).contains("llama_bf16", "llama_sharded", "llama3_rope", "qwen2_window", "mistral_window");
    }

    @ParameterizedTest
    @MethodSource("cases")
    void logitsAreThoseOfTransformers(String name) throws IOException {
        Path folder = CASES.resolve(name);
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard();
                MappedTensors golden = TensorFiles.open(folder.resolve("expected.safetensors"));
                CausalLM model = CausalLM.load(folder, ScalarType.Float)) {
            Tensor expected = golden.tensor("logits");
            Tensor ids = golden.tensor("input_ids");
            close(name, "logits", model.forward(ids), expected);

            Tensor mask = golden.tensor("padded_mask");
            Tensor padded = model.forward(golden.tensor("padded_ids"), mask, null);
            close(name, "padded", padded.mul(mask.unsqueeze(2)), golden.tensor("padded_logits"));

            try (KvCache cache = model.newCache(3)) {
                Tensor first = model.forward(ids.narrow(1, 0, 7), null, cache);
                Tensor second = model.forward(ids.narrow(1, 7, 1), null, cache);
                Tensor third = model.forward(ids.narrow(1, 8, ids.size(1) - 8), null, cache);
                close(name, "cached", first, expected.narrow(1, 0, 7));
                close(name, "cached", second, expected.narrow(1, 7, 1));
                close(name, "cached", third, expected.narrow(1, 8, ids.size(1) - 8));
                assertThat(cache.length()).isEqualTo(ids.size(1));
            }
        }
    }

    @ParameterizedTest
    @MethodSource("cases")
    void greedyTokensAreThoseOfTransformers(String name) throws IOException {
        Path folder = CASES.resolve(name);
        try (PointerScope scope = new PointerScope();
                MappedTensors golden = TensorFiles.open(folder.resolve("expected.safetensors"));
                CausalLM model = CausalLM.load(folder, ScalarType.Float)) {
            long[] prompt = Values.longs(golden.tensor("prompt"));
            long[] greedy = Values.longs(golden.tensor("greedy"));
            long[][] prompts = {{3, 1, 4, 1, 5, 9, 2}, prompt, {7}};
            GenerationOptions options = GenerationOptions.greedy(greedy.length);
            long[][] batch = model.generate(prompts, options);
            assertThat(batch[1]).isEqualTo(greedy);
            for (int row = 0; row < prompts.length; row++) {
                assertThat(model.generate(new long[][] {prompts[row]}, options)[0])
                        .isEqualTo(batch[row]);
            }
        }
    }

    @Test
    void bfloat16KeepsTheDistanceOfTransformers() throws IOException {
        Path folder = CASES.resolve("llama_bf16");
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard();
                MappedTensors golden = TensorFiles.open(folder.resolve("expected.safetensors"));
                CausalLM model = CausalLM.load(folder)) {
            Tensor logits = model.forward(golden.tensor("input_ids"));
            assertThat(Tensors.type(logits)).isEqualTo(ScalarType.BFloat16);
            Tensor half = golden.tensor("logits_bf16");
            Tensor exact = golden.tensor("logits");
            double theirs = Values.difference(half, exact);
            record("llama_bf16", "bfloat16 of transformers from float32", theirs);
            record("llama_bf16", "bfloat16 from float32", Values.difference(logits, exact));
            record("llama_bf16", "bfloat16", Values.difference(logits, half));
            assertThat(Values.difference(logits, exact)).isLessThan(2 * theirs);
            assertThat(Values.difference(logits, half)).isLessThan(2 * theirs);
            assertThat(theirs).as("the float32 logits are others").isGreaterThan(0);
        }
    }

    private static void close(String name, String what, Tensor actual, Tensor expected) {
        assertThat(Tensors.shape(actual)).isEqualTo(Tensors.shape(expected));
        double difference = Values.difference(actual, expected);
        double scale = Values.largest(expected);
        record(name, what, difference);
        record(name, "largest logit", scale);
        assertThat(difference).as("%s of %s", what, name).isLessThanOrEqualTo(FLOAT_TOLERANCE * scale);
    }

    private static void record(String name, String what, double value) {
        REPORT.computeIfAbsent(name, n -> new LinkedHashMap<>()).merge(what, value, Math::max);
    }

    @AfterAll
    static void report() throws IOException {
        REPORT.forEach((name, values) -> LOG.info("{} {}", name, values));
        Files.createDirectories(Path.of("target"));
        new JsonMapper()
                .writerWithDefaultPrettyPrinter()
                .writeValue(Path.of("target/parity-models.json").toFile(), REPORT);
    }
}
