package org.lora4j.model;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import java.util.TreeMap;
import java.util.stream.Stream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;
import tools.jackson.databind.json.JsonMapper;

/**
 * Adapters written here, which PEFT loaded without a missing or unexpected tensor: PEFT's outputs are ours. They were
 * written by {@link AdaptersForPeft}, and PEFT's outputs by src/test/python/golden/check_lora4j.py.
 */
class WrittenAdaptersTest {
    private static final String GROUP = "written_by_lora4j";
    private static final Map<String, Double> REPORT = new TreeMap<>();

    static Stream<String> cases() throws IOException {
        return GoldenCase.names(GROUP);
    }

    @Test
    void theNamedCasesAreThere() throws IOException {
        assertThat(cases())
                .contains(
                        "llama_patterns", "llama_lora_only", "llama_saved", "llama_embedding", "conv2d", "mlp_rslora");
    }

    @ParameterizedTest
    @MethodSource("cases")
    void peftComputesWhatWeCompute(String name) throws IOException {
        GoldenCase golden = new GoldenCase(GoldenCase.GOLDEN.resolve(GROUP).resolve(name));
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard();
                MappedTensors input = TensorFiles.open(golden.folder.resolve("input.safetensors"));
                MappedTensors peft = TensorFiles.open(golden.folder.resolve("peft.safetensors"))) {
            Module base = golden.base();
            Tensor alone = GoldenCase.forward(base, golden.input(input));
            Lora.load(base, golden.folder.resolve("adapter"), "default");
            Tensor ours = GoldenCase.forward(base, golden.input(input));
            Tensor theirs = GoldenCase.output(peft, "");
            double difference = GoldenCase.difference(ours, theirs);
            REPORT.put(name, difference);
            assertThat(difference).isLessThanOrEqualTo(2e-5 * GoldenCase.largest(theirs));
            assertThat(GoldenCase.difference(alone, theirs)).isGreaterThan(1e-2);
        }
    }

    @ParameterizedTest
    @MethodSource("cases")
    void loadedAndSavedAgainTheFilesAreTheSameBytes(String name, @TempDir Path out) throws IOException {
        GoldenCase golden = new GoldenCase(GoldenCase.GOLDEN.resolve(GROUP).resolve(name));
        Path adapter = golden.folder.resolve("adapter");
        try (PointerScope scope = new PointerScope()) {
            Lora.load(golden.base(), adapter, "default").save(out);
        }
        for (String file : new String[] {"adapter_config.json", "adapter_model.safetensors"}) {
            assertThat(Files.readAllBytes(out.resolve(file)))
                    .as(file)
                    .isEqualTo(Files.readAllBytes(adapter.resolve(file)));
        }
    }

    @AfterAll
    static void report() throws IOException {
        Files.createDirectories(Path.of("target"));
        new JsonMapper()
                .writerWithDefaultPrettyPrinter()
                .writeValue(Path.of("target/parity-written.json").toFile(), REPORT);
    }
}
