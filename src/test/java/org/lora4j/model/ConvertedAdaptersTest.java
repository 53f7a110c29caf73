package org.lora4j.model;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.format.AdapterConverter;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;

/** Adapters of PEFT that went through another layout and back compute what PEFT computes. */
class ConvertedAdaptersTest {
    @TempDir
    Path folder;

    @ParameterizedTest
    @ValueSource(strings = {"mlp_basic", "conv2d", "conv2d_1x1", "conv1d", "llama_patterns", "llama_bf16_adapter"})
    void outputsAreThoseOfPeft(String name) throws IOException {
        GoldenCase golden = new GoldenCase(GoldenCase.GOLDEN.resolve("adapters").resolve(name));
        Path peft = golden.adapters().get(0).folder();
        for (boolean kohya : new boolean[] {true, false}) {
            Path foreign = folder.resolve("foreign.safetensors");
            if (kohya) {
                AdapterConverter.toKohya(Map.of("lora_unet", peft), foreign);
            } else {
                AdapterConverter.toDiffusers(Map.of("transformer", peft), foreign);
            }
            try (PointerScope scope = new PointerScope();
                    NoGradGuard guard = new NoGradGuard();
                    MappedTensors expected = TensorFiles.open(golden.folder.resolve("expected.safetensors"))) {
                Module base = golden.base();
                Path back = folder.resolve("back");
                AdapterConverter.toPeft(foreign, modules(base), back);
                Lora.load(base, back, "converted");
                Tensor output = GoldenCase.forward(base, golden.input(expected));
                Module same = golden.base();
                Lora.load(same, peft, "original");
                assertThat(output.equal(GoldenCase.forward(same, golden.input(expected))))
                        .as("the adapter is the same, kohya %s", kohya)
                        .isTrue();
                Tensor wanted = GoldenCase.output(expected, "");
                double tolerance = golden.type() == ScalarType.Float ? 2e-5 : 0.1;
                assertThat(GoldenCase.difference(output, wanted))
                        .as("kohya %s", kohya)
                        .isLessThan(tolerance * Math.max(1, GoldenCase.largest(wanted)));
            }
        }
    }

    private static List<String> modules(Module base) {
        return Parameters.of(base).keySet().stream()
                .map(name -> name.substring(0, Math.max(0, name.lastIndexOf('.'))))
                .distinct()
                .toList();
    }
}
