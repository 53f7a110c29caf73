package org.lora4j.model;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.util.Arrays;
import java.util.Set;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.PeftCompat;
import org.lora4j.layer.LoraWeights;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;

/** The defects of PEFT: what is right by default, and PEFT's own numbers with the switch. See golden/defects. */
class DefectsTest {
    private static final ParityReport REPORT = new ParityReport(DefectsTest.class);

    @AfterAll
    static void report() {
        REPORT.write();
    }

    private static GoldenCase golden(String name) throws IOException {
        return new GoldenCase(GoldenCase.GOLDEN.resolve("defects").resolve(name));
    }

    private static LoraModel<Module> load(GoldenCase golden, boolean compat) throws IOException {
        Set<PeftCompat> switches =
                compat ? Set.of(PeftCompat.valueOf(golden.json.get("switch").asString())) : Set.of();
        LoraModel<Module> model = null;
        for (GoldenCase.Saved adapter : golden.adapters()) {
            if (model == null) {
                model = Lora.load(golden.base(), adapter.folder(), adapter.name(), switches);
            } else {
                model.loadAdapter(adapter.folder(), adapter.name());
            }
        }
        return model;
    }

    private static void near(String name, Tensor actual, Tensor expected) {
        double difference = GoldenCase.difference(actual, expected) / GoldenCase.largest(expected);
        REPORT.record("defects/" + name, "output", difference);
        assertThat(difference).isLessThanOrEqualTo(2e-5);
    }

    /** The share of elements with the same bits. */
    private static double same(Tensor a, Tensor b) {
        return a.eq(b).to(ScalarType.Double).mean().item_double();
    }

    @ParameterizedTest
    @CsvSource({"false,correct.,peft.", "true,peft.,correct."})
    void mergingRoundsOnce(boolean compat, String ours, String other) throws IOException {
        GoldenCase golden = golden("safe_merge");
        try (PointerScope scope = new PointerScope();
                MappedTensors expected = TensorFiles.open(golden.folder.resolve("expected.safetensors"))) {
            LoraModel<Module> model = load(golden, compat);
            model.setActive("a", "b");
            Module merged = model.mergeAndUnload();
            Tensor weight = Parameters.of(merged).get("lin0.weight");
            REPORT.record(
                    "defects/safe_merge",
                    "merged",
                    GoldenCase.difference(weight, expected.tensor(ours + "lin0.weight")) / GoldenCase.largest(weight));
            // The two sides sum in other orders, so a rounding may fall the other way here and there.
            assertThat(same(weight, expected.tensor(ours + "lin0.weight"))).isGreaterThan(0.985);
            assertThat(same(weight, expected.tensor(other + "lin0.weight"))).isLessThan(0.9);
        }
    }

    /** By PEFT's formula and not its numbers: the base outputs of two versions of LibTorch differ by a rounding in bfloat16. */
    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void rowsRoundOnce(boolean compat) {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            torch.manual_seed(2);
            Toys.Mlp net = new Toys.Mlp();
            net.to(ScalarType.BFloat16, false);
            Tensor hidden = torch.randn(64, 20).to(ScalarType.BFloat16);
            Tensor base = net.lin1.forward(hidden);
            LoraConfig config = LoraConfig.builder()
                    .r(3)
                    .loraAlpha(5)
                    .targetModules("lin1")
                    .initLoraWeights(false)
                    .build();
            LoraModel<Toys.Mlp> model =
                    Lora.wrap(net, config, "a", compat ? Set.of(PeftCompat.ROWS_ROUND_TWICE) : Set.of());
            LoraWeights weights = model.adapter("a").weights().get("lin1");
            Tensor update = torch.linear(torch.linear(hidden.to(ScalarType.Float), weights.a()), weights.b())
                    .mul(new Scalar(weights.scale()));
            Tensor once = base.add(update).to(ScalarType.BFloat16);
            Tensor twice = base.add(update.to(ScalarType.BFloat16));
            assertThat(same(once, twice)).isLessThan(0.9);
            String[] names = new String[64];
            Arrays.fill(names, "a");
            try (LoraModel.Scope rows = model.rows(names)) {
                assertThat(same(net.lin1.forward(hidden), compat ? twice : once))
                        .isGreaterThan(0.985);
            }
        }
    }

    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void activeAdaptersApplyBesideMergedOnes(boolean compat) throws IOException {
        GoldenCase golden = golden("partial_merge");
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard();
                MappedTensors expected = TensorFiles.open(golden.folder.resolve("expected.safetensors"))) {
            LoraModel<Module> model = load(golden, compat);
            model.setActive("a", "b");
            model.mergeAdapter("a");
            near(
                    "partial_merge",
                    GoldenCase.forward(model.base(), expected.tensor("input")),
                    expected.tensor(compat ? "peft.output" : "correct.output"));
        }
    }

    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void convolutionsPadAlike(boolean compat) throws IOException {
        GoldenCase golden = golden("padding");
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard();
                MappedTensors expected = TensorFiles.open(golden.folder.resolve("expected.safetensors"))) {
            LoraModel<Module> model = load(golden, compat);
            near(
                    "padding",
                    GoldenCase.forward(model.base(), expected.tensor("input")),
                    expected.tensor(compat ? "peft.output" : "correct.output"));
        }
    }

    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void loadingKeepsFloat32Factors(boolean compat) throws IOException {
        GoldenCase golden = golden("low_memory");
        try (PointerScope scope = new PointerScope();
                MappedTensors expected = TensorFiles.open(golden.folder.resolve("expected.safetensors"))) {
            LoraModel<Module> model = load(golden, compat);
            model.adapter("a").weights().forEach((path, weights) -> {
                for (LoraWeights.Part part : weights.parts().keySet()) {
                    String key = (compat ? "peft." : "correct.") + path + ".lora_" + part;
                    assertThat(weights.parts()
                                    .get(part)
                                    .equal(expected.tensor(key).to(ScalarType.Float)))
                            .as(key)
                            .isTrue();
                }
            });
        }
    }

    @Test
    void mergingIntoATiedEmbeddingLeavesTheOutputLayer() throws IOException {
        GoldenCase golden = golden("tied");
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard();
                MappedTensors expected = TensorFiles.open(golden.folder.resolve("expected.safetensors"))) {
            LoraModel<Module> model = load(golden, false);
            Tensor ids = expected.tensor("input_ids");
            near("tied", GoldenCase.forward(model.base(), ids), expected.tensor("correct.logits"));
            model.mergeAdapter();
            near("tied", GoldenCase.forward(model.base(), ids), expected.tensor("correct.logits"));
            assertThat(GoldenCase.difference(expected.tensor("peft.logits"), expected.tensor("correct.logits")))
                    .isGreaterThan(0.1);
        }
    }

    @Test
    void modulesToSaveAreWholeNames() throws IOException {
        GoldenCase golden =
                new GoldenCase(GoldenCase.GOLDEN.resolve("adapters").resolve("llama_modules_to_save_suffix"));
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard();
                MappedTensors expected = TensorFiles.open(golden.folder.resolve("expected.safetensors"))) {
            // PEFT's file has what PEFT took the name for, and is loaded so; a new adapter takes whole names.
            GoldenCase.Saved adapter = golden.adapters().get(0);
            LoraModel<Module> model = Lora.load(golden.base(), adapter.folder(), "a");
            LoraConfig config = model.adapter("a").config();
            assertThat(model.adapter("a").saved()).hasSize(7);
            assertThat(Lora.wrap(golden.base(), config, "a")
                            .adapter("a")
                            .saved()
                            .keySet())
                    .containsExactly("model.norm.weight");
            Set<PeftCompat> compat = Set.of(PeftCompat.MODULES_TO_SAVE_BY_SUFFIX);
            assertThat(Lora.wrap(golden.base(), config, "a", compat)
                            .adapter("a")
                            .saved())
                    .hasSize(7);
            near(
                    "modules_to_save_suffix",
                    GoldenCase.forward(model.base(), golden.input(expected)),
                    GoldenCase.output(expected, ""));
        }
    }
}
