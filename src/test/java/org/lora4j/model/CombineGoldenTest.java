package org.lora4j.model;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.stream.Stream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.lora4j.combine.CombineOptions;
import org.lora4j.combine.LayerReport;
import org.lora4j.combine.PeftCombination;
import org.lora4j.layer.LoraWeights;

/** Every combination of PEFT's {@code add_weighted_adapter}, with PEFT's arithmetic, on files and on a live model. */
class CombineGoldenTest {
    private static final ParityReport REPORT = new ParityReport(CombineGoldenTest.class);
    private static final Path FOLDER = GoldenCase.GOLDEN.resolve("combine");

    @AfterAll
    static void report() {
        REPORT.write();
    }

    static List<String> cases() throws IOException {
        try (Stream<String> names = GoldenCase.names("combine")) {
            return names.filter(name -> !name.equals("sources")).toList();
        }
    }

    static List<String> casesWithoutMasks() throws IOException {
        return cases().stream().filter(name -> !name.startsWith("dare")).toList();
    }

    private static void near(String name, String what, Tensor actual, Tensor expected) {
        double difference = GoldenCase.difference(actual, expected) / Math.max(GoldenCase.largest(expected), 1e-3);
        REPORT.record("combine/" + name, what.substring(0, what.indexOf('.')), difference);
        assertThat(difference).as(what).isLessThanOrEqualTo(1e-5);
    }

    @ParameterizedTest
    @MethodSource("cases")
    void functionsAgreeWithPeft(String name) throws IOException {
        try (PointerScope scope = new PointerScope();
                NoGradGuard noGrad = new NoGradGuard();
                PeftCombination golden = new PeftCombination(FOLDER.resolve(name))) {
            Map<String, Tensor> made = golden.replay();
            List<String> compared = new ArrayList<>();
            for (String key : golden.expected().names()) {
                if (!key.startsWith("mask.")) {
                    near(
                            name,
                            key,
                            Objects.requireNonNull(made.get(key), key),
                            golden.expected().tensor(key));
                    compared.add(key);
                }
            }
            assertThat(compared).containsExactlyInAnyOrderElementsOf(made.keySet());
        }
    }

    @ParameterizedTest
    @MethodSource("casesWithoutMasks")
    void aLiveModelAgreesWithPeft(String name) throws IOException {
        GoldenCase golden = new GoldenCase(FOLDER.resolve(name));
        try (PointerScope scope = new PointerScope();
                NoGradGuard noGrad = new NoGradGuard();
                PeftCombination combination = new PeftCombination(golden.folder)) {
            LoraModel<Module> model = null;
            List<String> names = new ArrayList<>();
            for (GoldenCase.Saved adapter : golden.adapters()) {
                names.add(adapter.name());
                if (model == null) {
                    model = Lora.load(golden.base(), adapter.folder(), adapter.name());
                } else {
                    model.loadAdapter(adapter.folder(), adapter.name());
                }
            }
            CombineOptions options = combination.options(true);
            List<LayerReport> reports =
                    Objects.requireNonNull(model).addWeightedAdapter(names, combination.weights(), "sum", options);
            Map<String, LoraWeights> made = model.adapter("sum").weights();
            assertThat(reports).extracting(LayerReport::path).containsExactlyElementsOf(made.keySet());
            made.forEach((path, weights) -> {
                Tensor b = weights.b().flatten(1, -1).to(ScalarType.Double);
                Tensor a = weights.a().flatten(1, -1).to(ScalarType.Double);
                String key = "delta." + path;
                near(
                        name,
                        key,
                        b.matmul(a).mul(new Scalar(weights.scale())),
                        combination.expected().tensor(key));
            });
            assertThat(made).hasSize((int) combination.expected().names().stream()
                    .filter(key -> key.startsWith("delta."))
                    .count());
        }
    }
}
