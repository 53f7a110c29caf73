package org.lora4j.model;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.lora4j.combine.CombinationType;
import org.lora4j.combine.CombineOptions;
import org.lora4j.combine.ExtractOptions;
import org.lora4j.combine.Extraction;
import org.lora4j.combine.FolderCombination;
import org.lora4j.combine.LayerListener;
import org.lora4j.combine.RankRule;
import org.lora4j.config.LoraConfig;
import org.lora4j.layer.LoraWeights;
import org.lora4j.model.causal.CausalLM;

/** Combinations on a live model: right by default, whole or not at all. */
class WeightedAdapterTest {
    private static final Path SOURCES = GoldenCase.GOLDEN.resolve("combine/sources");

    @TempDir
    Path folder;

    private static LoraModel<Module> load(String setup, String base) throws IOException {
        Module net = GoldenCase.base("toys/" + base + ".safetensors", base, ScalarType.Float);
        LoraModel<Module> model = Lora.load(net, SOURCES.resolve(setup + "/a"), "a");
        model.loadAdapter(SOURCES.resolve(setup + "/b"), "b");
        return model;
    }

    private static Tensor output(LoraModel<Module> model, Tensor x, String... active) {
        model.setActive(active);
        return GoldenCase.forward(model.base(), x).clone();
    }

    /** With linear layers alone active, outputs add up. */
    @ParameterizedTest
    @CsvSource({
        "rslora, mlp, LINEAR", "rslora, mlp, CAT", "dora, mlp, LINEAR", "dora, mlp, EXACT", "bias, mlp, LINEAR",
        "bias, mlp, CAT", "mixed, mlp, EXACT", "patterns, mlp, LINEAR", "conv, conv2d, LINEAR", "emb, embconv, EXACT",
        "hf, hfmlp, CAT"
    })
    void theSumOfTheUpdatesIsWhatTheNewAdapterDoes(String setup, String base, CombinationType type) throws IOException {
        try (PointerScope scope = new PointerScope();
                NoGradGuard noGrad = new NoGradGuard()) {
            LoraModel<Module> model = load(setup, base);
            model.addWeightedAdapter(List.of("a", "b"), List.of(0.8, -0.3), "sum", CombineOptions.of(type));
            Map<String, Tensor> merged = merged(model, "sum");
            Map<String, Tensor> before = merged(model);
            Map<String, Tensor> a = merged(model, "a");
            Map<String, Tensor> b = merged(model, "b");
            merged.forEach((name, weight) -> {
                Tensor plain = before.get(name);
                Tensor expected = plain.add(a.get(name).sub(plain).mul(new Scalar(0.8)))
                        .add(b.get(name).sub(plain).mul(new Scalar(-0.3)));
                assertThat(GoldenCase.difference(weight, expected)).as(name).isLessThan(1e-5);
            });
        }
    }

    /** The base's parameters with adapters merged. */
    private static Map<String, Tensor> merged(LoraModel<Module> model, String... active) {
        model.setActive(active);
        if (active.length > 0) {
            model.mergeAdapter();
        }
        Map<String, Tensor> copies = new java.util.TreeMap<>();
        Parameters.of(model.base())
                .forEach((name, value) -> copies.put(name, value.detach().clone()));
        if (active.length > 0) {
            model.unmergeAdapter();
        }
        return copies;
    }

    @ParameterizedTest
    @EnumSource(CombinationType.class)
    void everyTypeMakesAnAdapterThatWorksAndIsSaved(CombinationType type) throws IOException {
        CombineOptions.Builder options = CombineOptions.builder(type).seed(5);
        if (type != CombinationType.SVD
                && type != CombinationType.LINEAR
                && type != CombinationType.CAT
                && type != CombinationType.EXACT
                && type != CombinationType.SLERP) {
            options.density(0.5);
        }
        try (PointerScope scope = new PointerScope();
                NoGradGuard noGrad = new NoGradGuard()) {
            LoraModel<Module> model = load("patterns", "mlp");
            model.addWeightedAdapter(List.of("a", "b"), List.of(0.8, 0.3), "sum", options.build());
            assertThat(model.activeAdapters()).containsExactly("a");
            Tensor x = torch.randn(4, 10);
            Tensor live = output(model, x, "sum");
            assertThat(GoldenCase.difference(live, output(model, x))).isGreaterThan(1e-3);
            model.save(folder.resolve("live"), "sum");
            FolderCombination.combine(
                    List.of(SOURCES.resolve("patterns/a"), SOURCES.resolve("patterns/b")),
                    List.of(0.8, 0.3),
                    options.build(),
                    null,
                    folder.resolve("files"),
                    LayerListener.NONE);
            model.loadAdapter(folder.resolve("live"), "saved");
            model.loadAdapter(folder.resolve("files"), "files");
            assertThat(GoldenCase.difference(output(model, x, "saved"), live)).isZero();
            assertThat(GoldenCase.difference(output(model, x, "files"), live)).isLessThan(1e-5);
        }
    }

    @Test
    void mergedAdaptersAndScalesAreRead() throws IOException {
        try (PointerScope scope = new PointerScope();
                NoGradGuard noGrad = new NoGradGuard()) {
            LoraModel<Module> model = load("dora", "mlp");
            CombineOptions linear = CombineOptions.of(CombinationType.LINEAR);
            model.addWeightedAdapter(List.of("a", "b"), List.of(0.5, 0.5), "apart", linear);
            model.setActive("a");
            model.mergeAdapter();
            model.addWeightedAdapter(List.of("a", "b"), List.of(0.5, 0.5), "merged", linear);
            for (String path : model.adapter("apart").weights().keySet()) {
                LoraWeights one = model.adapter("apart").weights().get(path);
                LoraWeights other = model.adapter("merged").weights().get(path);
                assertThat(one.b().equal(other.b())).isTrue();
                assertThat(one.magnitude().equal(other.magnitude())).isTrue();
            }
        }
    }

    @Test
    void whatDoesNotFitAddsNothing() throws IOException {
        try (PointerScope scope = new PointerScope()) {
            LoraModel<Module> model = load("targets", "mlp");
            CombineOptions linear = CombineOptions.of(CombinationType.LINEAR);
            List<Double> one = List.of(1.0, 1.0);
            assertThatThrownBy(() -> model.addWeightedAdapter(List.of("a", "c"), one, "sum", linear))
                    .hasMessageContaining("no adapter \"c\"");
            assertThatThrownBy(() -> model.addWeightedAdapter(List.of("a", "a"), one, "sum", linear))
                    .hasMessageContaining("named twice");
            assertThatThrownBy(() -> model.addWeightedAdapter(List.of(), List.of(), "sum", linear))
                    .hasMessageContaining("0 adapters");
            assertThatThrownBy(() -> model.addWeightedAdapter(List.of("a", "b"), one, "a", linear))
                    .hasMessageContaining("there is an adapter \"a\" already");
            assertThatThrownBy(() -> model.addWeightedAdapter(List.of("a", "b"), one, "x.y", linear))
                    .hasMessageContaining("has no dot");
            assertThatThrownBy(() -> model.addWeightedAdapter(List.of("a", "b"), one, "sum", linear))
                    .hasMessageContaining("different targets");
            try (NoGradGuard noGrad = new NoGradGuard()) {
                model.adapter("b").weights().get("lin1").b().fill_(new Scalar(Double.NaN));
            }
            CombineOptions any = CombineOptions.builder(CombinationType.CAT)
                    .differentTargets(true)
                    .build();
            assertThatThrownBy(() -> model.addWeightedAdapter(List.of("a", "b"), one, "sum", any))
                    .hasMessageContaining("lin1")
                    .hasMessageContaining("not finite");
            assertThat(model.adapterNames()).containsExactly("a", "b");
            assertThat(model.activeAdapters()).containsExactly("a");
        }
    }

    @Test
    void anExtractedAdapterMakesTheFineTunedModel() throws IOException {
        Path base = GoldenCase.GOLDEN.resolve("models/llama");
        torch.manual_seed(4);
        try (PointerScope scope = new PointerScope();
                NoGradGuard noGrad = new NoGradGuard()) {
            CausalLM tuned = CausalLM.load(base, ScalarType.Float);
            Parameters.of(tuned).forEach((name, value) -> {
                boolean changes = name.contains("proj") || name.contains("norm") || name.contains("embed");
                if (changes) {
                    value.add_(torch.randn_like(value), new Scalar(0.02));
                }
            });
            tuned.save(folder.resolve("tuned"));
            Extraction.extract(
                    base,
                    folder.resolve("tuned"),
                    ExtractOptions.of(new RankRule.Fixed(1000)),
                    folder.resolve("adapter"),
                    LayerListener.NONE);
            CausalLM model = CausalLM.load(base, ScalarType.Float);
            Tensor ids = torch.arange(new Scalar(9L)).view(1, 9);
            Tensor before = model.forward(ids).clone();
            Lora.load(model, folder.resolve("adapter"), "default");
            Tensor expected = tuned.forward(ids);
            assertThat(GoldenCase.difference(before, expected)).isGreaterThan(1e-2);
            assertThat(GoldenCase.difference(model.forward(ids), expected))
                    .isLessThan(2e-4 * GoldenCase.largest(expected));
        }
    }

    @Test
    void wholeModulesAddUpOnAModelToo() {
        try (PointerScope scope = new PointerScope();
                NoGradGuard noGrad = new NoGradGuard()) {
            Toys.Mlp net = new Toys.Mlp();
            LoraConfig config = LoraConfig.builder()
                    .r(2)
                    .targetModules("lin0")
                    .modulesToSave("lin1")
                    .build();
            LoraModel<Toys.Mlp> model = Lora.wrap(net, config, "a");
            model.addAdapter("b", config);
            Tensor plain = net.lin1.weight().clone();
            Map<String, Tensor> values = new java.util.TreeMap<>();
            for (String name : List.of("a", "b")) {
                model.setActive(name);
                net.lin1.weight().normal_();
                values.put(name, net.lin1.weight().clone());
            }
            model.addWeightedAdapter(
                    List.of("a", "b"), List.of(0.4, 0.9), "sum", CombineOptions.of(CombinationType.CAT));
            model.setActive("sum");
            Tensor expected = plain.mul(new Scalar(-0.3))
                    .add(values.get("a").mul(new Scalar(0.4)))
                    .add(values.get("b").mul(new Scalar(0.9)));
            assertThat(GoldenCase.difference(net.lin1.weight(), expected)).isLessThan(1e-5);
        }
    }
}
