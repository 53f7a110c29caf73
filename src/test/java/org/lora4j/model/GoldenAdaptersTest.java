package org.lora4j.model;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.Stream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.lora4j.config.PeftCompat;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;
import org.lora4j.ops.Tensors;

/**
 * Adapters that PEFT wrote, loaded here: outputs, rows and merged weights are PEFT's. See src/test/python/golden.
 *
 * <p>In float32 both sides compute the same sums in other orders; 2e-5 of the largest value is some 160 units of rounding
 * through three layers. In half types every operation rounds to 8 or 11 bits, in another order on either side: the bare bases already
 * differ by up to 6 roundings of the largest value, and the adapted models may by twice that.
 */
class GoldenAdaptersTest {
    private static final ParityReport REPORT = new ParityReport(GoldenAdaptersTest.class);

    /** The folders of cases whose adapters load as they are. */
    private static final List<String> GROUPS = List.of(
            "adapters",
            "alora",
            "attention",
            "combos",
            "dora",
            "inits",
            "lora_bias",
            "parameters",
            "replication",
            "tokens",
            "tying");

    /** Cases that are in no group of their own. */
    private static final List<String> OTHERS = List.of("other_methods/alora", "other_methods/layer_replication");

    /** Every case as group/name. */
    static Stream<String> cases() throws IOException {
        List<String> cases = new ArrayList<>(OTHERS);
        for (String group : GROUPS) {
            if (Files.isDirectory(GoldenCase.GOLDEN.resolve(group))) {
                GoldenCase.names(group).forEach(name -> cases.add(group + "/" + name));
            }
        }
        return cases.stream();
    }

    @Test
    void theNamedCasesAreThere() throws IOException {
        assertThat(GoldenCase.names("adapters"))
                .contains(
                        "llama_patterns",
                        "llama_bias_lora_only",
                        "llama_modules_to_save",
                        "llama_embedding",
                        "conv2d",
                        "llama_rows",
                        "llama_bf16_base")
                .hasSizeGreaterThanOrEqualTo(70);
    }

    @ParameterizedTest
    @MethodSource("cases")
    void outputsAreThoseOfPeft(String name) throws IOException {
        GoldenCase golden = new GoldenCase(GoldenCase.GOLDEN.resolve(name));
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard();
                MappedTensors expected = TensorFiles.open(golden.folder.resolve("expected.safetensors"))) {
            Module base = golden.base();
            Tensor input = golden.input(expected);
            Tensor alone = GoldenCase.forward(base, input);
            check(name, "base", golden.type(), alone, GoldenCase.output(expected, "base_"));

            LoraModel<Module> model = load(golden, base);
            Tensor adapted = GoldenCase.output(expected, "");
            assertThat(GoldenCase.difference(alone, adapted))
                    .as("the adapters matter")
                    .isGreaterThan(1e-3);
            String[] rows = golden.strings("rows");
            if (rows == null) {
                check(name, "output", golden.type(), GoldenCase.forward(base, input), adapted);
            } else {
                try (LoraModel.Scope each = model.rows(rows)) {
                    check(name, "rows", golden.type(), GoldenCase.forward(base, input), adapted);
                }
            }
            model.disable();
            double moved = GoldenCase.difference(GoldenCase.forward(base, input), alone);
            // LibTorch's own attention differs by a rounding between two calls, as its memory happens to be aligned.
            boolean same = moved <= (name.startsWith("attention") ? 1e-5 : 0);
            // Repeated layers stay while the adapter is off, as in PEFT; ReplicationTest holds what they compute.
            assertThat(same).isEqualTo(!name.contains("replication"));
        }
    }

    /**
     * All but rows, which are never merged, and those whose merging is refused: convolutions with groups, as LoraModelTest
     * holds, and activated LoRA, as AloraTest does.
     */
    static Stream<String> mergeable() throws IOException {
        List<String> mergeable = new ArrayList<>();
        for (String name : cases().toList()) {
            GoldenCase golden = new GoldenCase(GoldenCase.GOLDEN.resolve(name));
            if (golden.strings("rows") == null
                    && !name.endsWith("_groups")
                    && !name.endsWith("llama_bare")
                    && !name.contains("alora")) {
                mergeable.add(name);
            }
        }
        return mergeable.stream();
    }

    @ParameterizedTest
    @MethodSource("mergeable")
    void mergedWeightsAreThoseOfPeftAndUnmergeRestoresEveryBit(String name) throws IOException {
        GoldenCase golden = new GoldenCase(GoldenCase.GOLDEN.resolve(name));
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard();
                MappedTensors expected = TensorFiles.open(golden.folder.resolve("expected.safetensors"))) {
            Module base = golden.base();
            Map<String, Tensor> before = copies(base);
            LoraModel<Module> model = load(golden, base);
            Tensor unmerged = GoldenCase.forward(base, golden.input(expected));
            model.mergeAdapter();
            Tensor merged = GoldenCase.forward(base, golden.input(expected));
            boolean half = golden.type() != ScalarType.Float;
            assertThat(GoldenCase.difference(merged, unmerged))
                    .as("merged output")
                    .isLessThanOrEqualTo((half ? 0.1 : 1e-4) * GoldenCase.largest(unmerged));
            model.unmergeAdapter();
            assertThat(GoldenCase.difference(GoldenCase.forward(base, golden.input(expected)), unmerged))
                    .isZero();

            model.mergeAndUnload();
            Map<String, Tensor> after = copies(base);
            for (String key : expected.names()) {
                if (key.startsWith("merged.")) {
                    Tensor theirs = expected.tensor(key);
                    Tensor ours = after.get(key.substring("merged.".length()));
                    assertThat(ours).as(key).isNotNull();
                    int roundings = golden.json.get("roundings").asInt();
                    double step = (half ? step(golden.type()) : 4e-6) * GoldenCase.largest(theirs) * roundings;
                    double difference = GoldenCase.difference(ours, theirs);
                    REPORT.record(name, "merged", difference / GoldenCase.largest(theirs));
                    assertThat(difference).as(key).isLessThanOrEqualTo(step);
                }
            }

            Module again = golden.base();
            LoraModel<Module> second = load(golden, again);
            second.mergeAdapter();
            second.unload();
            copies(again)
                    .forEach((path, value) ->
                            assertThat(value.equal(before.get(path))).as(path).isTrue());
        }
    }

    @ParameterizedTest
    @MethodSource("cases")
    void savedAgainTheFilesHoldTheSameTensors(String name) throws IOException {
        GoldenCase golden = new GoldenCase(GoldenCase.GOLDEN.resolve(name));
        Path out = Files.createTempDirectory("lora4j");
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            Module base = golden.base();
            LoraModel<Module> model = load(golden, base);
            for (GoldenCase.Saved adapter : golden.adapters()) {
                model.save(out, adapter.name());
                try (MappedTensors theirs = TensorFiles.open(adapter.folder().resolve("adapter_model.safetensors"));
                        MappedTensors ours = TensorFiles.open(out.resolve("adapter_model.safetensors"))) {
                    for (String key : theirs.names()) {
                        if (!ours.names().contains(key)) {
                            // PEFT repeats the weight of an adapted embedding, which did not change.
                            assertThat(key).matches(".*(embed_tokens|lm_head)\\.(base_layer\\.)?weight");
                            continue;
                        }
                        Tensor mine = ours.tensor(key);
                        Tensor wanted = theirs.tensor(key).to(Tensors.type(mine));
                        assertThat(mine.equal(wanted)).as(key).isTrue();
                    }
                    assertThat(theirs.names()).containsAll(ours.names());
                }
            }
        } finally {
            try (Stream<Path> files = Files.walk(out)) {
                files.sorted(java.util.Comparator.reverseOrder())
                        .forEach(f -> f.toFile().delete());
            }
        }
    }

    private static LoraModel<Module> load(GoldenCase golden, Module base) throws IOException {
        LoraModel<Module> model = null;
        for (GoldenCase.Saved adapter : golden.adapters()) {
            if (model == null) {
                // PEFT counts the output projection of an attention twice.
                String name = golden.folder.getFileName().toString();
                Set<PeftCompat> compat =
                        name.startsWith("twice") ? Set.of(PeftCompat.ATTENTION_OUTPUT_TWICE) : Set.of();
                model = Lora.load(base, adapter.folder(), adapter.name(), compat);
            } else {
                model.loadAdapter(adapter.folder(), adapter.name());
            }
        }
        String[] active = golden.strings("active");
        if (active != null) {
            model.setActive(active);
        }
        return model;
    }

    private static Map<String, Tensor> copies(Module model) {
        Map<String, Tensor> copies = new LinkedHashMap<>();
        Parameters.of(model).forEach((path, p) -> copies.put(path, p.detach().clone()));
        return copies;
    }

    private static double step(ScalarType type) {
        return type == ScalarType.BFloat16 ? 1.0 / 256 : 1.0 / 2048;
    }

    private static void check(String name, String what, ScalarType type, Tensor actual, Tensor expected) {
        double difference = GoldenCase.difference(actual, expected);
        REPORT.record(name, what, difference / GoldenCase.largest(expected));
        double tolerance = type == ScalarType.Float ? 2e-5 : 12 * step(type);
        assertThat(difference).as("%s of %s", what, name).isLessThanOrEqualTo(tolerance * GoldenCase.largest(expected));
    }

    @AfterAll
    static void report() {
        REPORT.write();
    }
}
