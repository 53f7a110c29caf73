package org.lora4j.model;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;
import static org.lora4j.model.MoeToys.adapted;
import static org.lora4j.model.MoeToys.config;
import static org.lora4j.model.MoeToys.copies;
import static org.lora4j.model.MoeToys.input;
import static org.lora4j.model.MoeToys.moe;

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
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.lora4j.config.InitLoraWeights;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.LoraConfigBuilder;
import org.lora4j.layer.LoraWeights;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;
import org.lora4j.ops.Tensors;

/** Adapters of single parameters, beside what GoldenAdaptersTest holds for PEFT's: switching, merging, files, refusals. */
class TargetParametersTest {
    private static final String GATE_UP = "layers.0.experts.gate_up_proj";
    private static final String DOWN = "layers.1.experts.down_proj";
    private static final String[] BOTH = {"experts.gate_up_proj", "experts.down_proj"};

    @BeforeEach
    void seed() {
        torch.manual_seed(7);
    }

    private static void assertSame(Module model, Map<String, Tensor> before) {
        Parameters.of(model).forEach((path, p) -> {
            assertThat(p.equal(before.get(path))).as(path).isTrue();
            assertThat(p.is_leaf() && !p.requires_grad()).as(path).isTrue();
        });
    }

    @ParameterizedTest
    @CsvSource({"Float, false", "Float, true", "BFloat16, false", "Half, true", "Double, false"})
    void theValueIsRoundedOnceAndOffMergedAndUnloadedItIsTheBase(ScalarType type, boolean transposed) {
        try (PointerScope scope = new PointerScope()) {
            MoeToys.Moe net = moe(transposed, type);
            Map<String, Tensor> before = copies(net);
            Object shared = net.layers.get(0).shared;
            // Layers with float64 weights are not merged.
            String[] modules = type == ScalarType.Double ? new String[0] : new String[] {"shared"};
            LoraModel<MoeToys.Moe> model =
                    Lora.wrap(net, config(1, 3, BOTH).targetModules(modules).build(), "one");
            model.addAdapter("two", config(4, 7, BOTH).targetModules(modules).build());
            model.setActive("one", "two");
            Tensor base = before.get(DOWN).to(ScalarType.Double);
            Tensor exact = wide(base, transposed, model, "one", "two");
            Tensor value = net.layers.get(1).experts.down.detach();
            double ulp = type == ScalarType.BFloat16 ? 1.0 / 256 : type == ScalarType.Half ? 1.0 / 2048 : 1e-6;
            assertThat(value.to(ScalarType.Double)
                            .sub(exact)
                            .abs()
                            .le(exact.abs().mul(new Scalar(ulp * 1.01)).add(new Scalar(1e-6)))
                            .all()
                            .item_bool())
                    .isTrue();

            model.disable();
            assertThat(net.layers.get(1).experts.down.equal(before.get(DOWN))).isTrue();
            model.enable();
            assertThat(net.layers.get(1).experts.down.equal(value)).isTrue();

            model.mergeAdapter("two");
            assertThat(model.mergedAdapters()).containsExactly("two");
            double apart = GoldenCase.difference(net.layers.get(1).experts.down, value);
            assertThat(apart).isLessThanOrEqualTo(2 * ulp * GoldenCase.largest(value));
            model.mergeAdapter();
            assertThat(GoldenCase.difference(net.layers.get(1).experts.down, value))
                    .isLessThanOrEqualTo(2 * ulp * GoldenCase.largest(value));
            model.setActive("two");
            assertThat(model.mergedAdapters()).isEmpty();
            assertThat(GoldenCase.difference(net.layers.get(1).experts.down, wide(base, transposed, model, "two")))
                    .isLessThanOrEqualTo(ulp * GoldenCase.largest(value));
            model.deleteAdapter("two");
            assertThat(model.activeAdapters()).containsExactly("one");
            assertThat(GoldenCase.difference(net.layers.get(1).experts.down, wide(base, transposed, model, "one")))
                    .isLessThanOrEqualTo(ulp * GoldenCase.largest(value));
            model.unload();
            assertSame(net, before);
            assertThat(net.layers.get(0).shared).isSameAs(shared);
        }
    }

    private static Tensor wide(Tensor base, boolean transposed, LoraModel<MoeToys.Moe> model, String... names) {
        Tensor sum = base;
        for (String name : names) {
            LoraWeights weights = model.adapter(name).weights().get(DOWN);
            Tensor update = adapted(torch.zeros_like(base), transposed, weights);
            sum = sum.add(update.detach().to(ScalarType.Double));
        }
        return sum;
    }

    @Test
    void mergedForGoodTheWeightsStayAndTheModelIsPlain() {
        try (PointerScope scope = new PointerScope();
                NoGradGuard noGrad = new NoGradGuard()) {
            MoeToys.Moe net = moe(false, ScalarType.Float);
            LoraModel<MoeToys.Moe> model = Lora.wrap(net, config(3, 5, BOTH).build(), "default");
            Tensor x = input(ScalarType.Float);
            Tensor adapted = net.forward(x);
            model.mergeAndUnload();
            assertThat(GoldenCase.difference(net.forward(x), adapted)).isZero();
            Parameters.of(net)
                    .forEach((path, p) -> assertThat(p.is_leaf()).as(path).isTrue());
        }
    }

    @Test
    void brokenFactorsAreNotMergedSafely() {
        try (PointerScope scope = new PointerScope();
                NoGradGuard noGrad = new NoGradGuard()) {
            MoeToys.Moe net = moe(false, ScalarType.Float);
            Map<String, Tensor> before = copies(net);
            LoraModel<MoeToys.Moe> model = Lora.wrap(net, config(3, 5, BOTH).build(), "default");
            model.adapter("default").weights().get(DOWN).a().fill_(new Scalar(Double.NaN));
            model.refresh();
            assertThatThrownBy(() -> model.mergeAdapter(true, Progress.NONE))
                    .isInstanceOf(ArithmeticException.class)
                    .hasMessageContaining(DOWN);
            assertThat(model.mergedAdapters()).isEmpty();
            model.unload();
            assertSame(net, before);
        }
    }

    @Test
    void aNewScaleAppliesAtOnce() {
        try (PointerScope scope = new PointerScope();
                NoGradGuard noGrad = new NoGradGuard()) {
            MoeToys.Moe net = moe(false, ScalarType.Double);
            Tensor base = net.layers.get(1).experts.down.detach().clone();
            LoraModel<MoeToys.Moe> model = Lora.wrap(net, config(3, 5, BOTH).build(), "default");
            Tensor whole = net.layers.get(1).experts.down.detach().clone();
            model.adapter("default").setScale(0.25);
            Tensor expected = base.add(whole.sub(base), new Scalar(0.25));
            assertThat(GoldenCase.difference(net.layers.get(1).experts.down, expected))
                    .isLessThan(1e-14);
            model.adapter("default").setScale(0);
            assertThat(GoldenCase.difference(net.layers.get(1).experts.down, base))
                    .isZero();
        }
    }

    @Test
    void savedAndLoadedAgainItComputesTheSame(@TempDir Path folder) throws IOException {
        try (PointerScope scope = new PointerScope();
                NoGradGuard noGrad = new NoGradGuard()) {
            MoeToys.Moe net = moe(true, ScalarType.Float);
            Map<String, Tensor> before = copies(net);
            Tensor x = input(ScalarType.Float);
            LoraConfig config = config(3, 5, "mix", "last_proj", "experts.down_proj")
                    .targetModules("shared", "head")
                    .rankPattern(Map.of("experts.down_proj", 1))
                    .build();
            LoraModel<MoeToys.Moe> model = Lora.wrap(net, config, "default");
            Tensor adapted = net.forward(x);
            model.save(folder, "default");
            model.unload();
            try (MappedTensors saved = TensorFiles.open(folder.resolve("adapter_model.safetensors"))) {
                assertThat(saved.names())
                        .contains(
                                "base_model.model.layers.0.lora_A.weight",
                                "base_model.model.layers.0.base_layer.experts.lora_B.weight",
                                "base_model.model.layers.0.base_layer.experts.base_layer.lora_A.weight",
                                "base_model.model.layers.1.base_layer.shared.lora_A.weight",
                                "base_model.model.head.lora_B.weight")
                        .hasSize(2 * (2 * 4 + 1));
                assertThat(Tensors.shape(
                                saved.tensor("base_model.model.layers.0.base_layer.experts.base_layer.lora_A.weight")))
                        .containsExactly(3, 5);
            }
            LoraModel<MoeToys.Moe> again = Lora.load(net, folder, "again");
            assertThat(again.adapter("again").config().targetParameters()).isEqualTo(config.targetParameters());
            assertThat(GoldenCase.difference(net.forward(x), adapted)).isZero();
            again.hotswap("again", folder);
            assertThat(GoldenCase.difference(net.forward(x), adapted)).isZero();
            again.unload();
            assertSame(net, before);
        }
    }

    @Test
    void startsAtTheBaseAndCountsItsNumbers() {
        try (PointerScope scope = new PointerScope();
                NoGradGuard noGrad = new NoGradGuard()) {
            MoeToys.Moe net = moe(false, ScalarType.Float);
            Map<String, Tensor> before = copies(net);
            LoraModel<MoeToys.Moe> model = Lora.wrap(
                    net,
                    config(2, 5, BOTH)
                            .initLoraWeights(InitLoraWeights.of("gaussian"))
                            .targetModules("shared")
                            .build(),
                    "default");
            assertThat(net.layers.get(0).experts.gateUp.equal(before.get(GATE_UP)))
                    .isTrue();
            LoraWeights weights = model.adapter("default").weights().get(GATE_UP);
            assertThat(Tensors.shape(weights.a())).containsExactly(2 * 3, 6);
            assertThat(Tensors.shape(weights.b())).containsExactly(10, 2 * 3);
            assertThat(weights.a().std().item_double()).isCloseTo(0.5, within(0.25));
            assertThat(model.layerStatus())
                    .extracting(LayerStatus::name)
                    .containsExactly(
                            GATE_UP,
                            "layers.0.experts.down_proj",
                            "layers.0.shared",
                            "layers.1.experts.gate_up_proj",
                            DOWN,
                            "layers.1.shared");
            LayerStatus status = model.layerStatus().get(0);
            assertThat(status.type()).isEqualTo("lora.ParamWrapper");
            assertThat(status.availableAdapters()).containsExactly("default");
            assertThat(status.requiresGrad().get("default").value()).isTrue();
            long trained = 2 * (2 * (3 * 6 + 10 * 3) + 2 * (3 * 5 + 6 * 3) + 2 * (6 + 6));
            assertThat(model.modelStatus().trainableParameters()).isEqualTo(trained);
            assertThat(model.modelStatus().totalParameters()).isEqualTo(trained + Parameters.count(net));
        }
    }

    @Test
    void aTargetedParameterThatIsNotThereIsNamedWithNearMisses() {
        try (PointerScope scope = new PointerScope()) {
            MoeToys.Moe net = moe(false, ScalarType.Float);
            assertThatThrownBy(() ->
                            Lora.wrap(net, config(2, 5, "experts.gate_up_prj").build(), "default"))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessageContaining("experts.gate_up_prj")
                    .hasMessageContaining("near misses: {experts.gate_up_prj=[experts.gate_up_proj");
        }
    }

    @Test
    void whatCannotTakeAnAdapterIsRefused() {
        try (PointerScope scope = new PointerScope()) {
            MoeToys.Moe net = moe(false, ScalarType.Float);
            net.register_parameter("own", torch.ones(3, 3));
            Module tied = net.register_module("tied", new Module());
            tied.register_parameter("weight", net.layers.get(0).mix);
            Module view = net.register_module("view", new Module());
            view.register_parameter("part", torch.ones(4, 4).narrow(0, 0, 2));
            Module ints = net.register_module("ints", new Module());
            ints.register_parameter("codes", torch.ones(4, 4).to(ScalarType.Char), false);
            refused(net, config(1, 2, "shared.bias"), "shared.bias", "only matrices");
            refused(net, config(1, 2, "own"), "'own'", "parameter of the model itself");
            refused(net, config(1, 2, "tied.weight"), "'tied.weight'", "'layers.0.mix'");
            refused(net, config(1, 2, "view.part"), "view of another tensor");
            refused(net, config(1, 2, "ints.codes"), "float32");
            refused(net, config(1, 2, "shared.weight").targetModules("shared"), "shared.weight", "targetModules");
            refused(net, config(1, 2, "head.weight").modulesToSave("head"), "head.weight", "modulesToSave");
            refused(
                    net,
                    config(1, 2, "experts.down_proj").initLoraWeights(InitLoraWeights.of("pissa")),
                    "pissa",
                    "down_proj");
            assertThatThrownBy(() -> config(1, 2, BOTH).loraDropout(0.1).build())
                    .hasMessageContaining("loraDropout");
            assertThatThrownBy(() -> config(1, 2, BOTH).useDora(true).build()).hasMessageContaining("use_dora");
        }
    }

    private static void refused(Module net, LoraConfigBuilder config, String... parts) {
        Map<String, Tensor> before = copies(net);
        assertThatThrownBy(() -> Lora.wrap(net, config.build(), "default"))
                .isInstanceOf(IllegalArgumentException.class)
                .satisfies(e -> assertThat(e.getMessage()).contains(parts));
        assertSame(net, before);
    }

    @Test
    void adaptersThatCannotBeTogetherAreRefused() {
        try (PointerScope scope = new PointerScope();
                NoGradGuard noGrad = new NoGradGuard()) {
            MoeToys.Moe net = moe(false, ScalarType.Float);
            LoraModel<MoeToys.Moe> model =
                    Lora.wrap(net, config(2, 5, "shared.weight", "mix").build(), "one");
            assertThatThrownBy(() -> model.addAdapter("two", config(2, 5, "mix").build()))
                    .hasMessageContaining("adapt the same parameters");
            assertThatThrownBy(() -> model.addAdapter(
                            "two", LoraConfig.builder().targetModules("shared").build()))
                    .hasMessageContaining("layers.0.shared.weight")
                    .hasMessageContaining("lora.Linear");
            model.addAdapter("two", LoraConfig.builder().targetModules("head").build());
            assertThatThrownBy(() -> model.rows("one", "two"))
                    .isInstanceOf(IllegalStateException.class)
                    .hasMessageContaining("share a parameter");
            assertThatThrownBy(() -> model.addWeightedAdapter(List.of("one"), List.of(1.0), "sum"))
                    .hasMessageContaining("targetParameters");
            model.addAdapter(
                    "three",
                    LoraConfig.builder()
                            .targetModules("head")
                            .modulesToSave("router", "shared")
                            .build());
            assertThatThrownBy(() -> model.setActive("one", "three")).hasMessageContaining("layers.0.shared.weight");
            Tensor x = input(ScalarType.Float);
            model.setActive("one");
            Tensor adapted = net.forward(x);
            model.setActive("three");
            model.setActive("one");
            assertThat(GoldenCase.difference(net.forward(x), adapted)).isZero();
            model.deleteAdapter("one");
            model.rows("two", LoraModel.BASE).close();
        }
    }

    @Test
    void aLinearLayerInsideCppIsReached() {
        try (PointerScope scope = new PointerScope();
                NoGradGuard noGrad = new NoGradGuard()) {
            var net = new Module();
            var sequential = new org.bytedeco.pytorch.SequentialImpl();
            sequential.push_back(new org.bytedeco.pytorch.LinearImpl(5, 3));
            net.register_module("inner", sequential);
            Tensor x = torch.randn(new long[] {4, 5});
            Tensor before = sequential.forward(x);
            LoraModel<Module> model = Lora.wrap(net, config(2, 3, "0.weight").build(), "default");
            LoraWeights weights = model.adapter("default").weights().get("inner.0.weight");
            Tensor expected =
                    before.add(torch.linear(torch.linear(x, weights.a()), weights.b()), new Scalar(weights.scale()));
            assertThat(GoldenCase.difference(sequential.forward(x), expected)).isLessThan(1e-5);
            assertThat(model.layerStatus()).extracting(LayerStatus::type).containsExactly("lora.ParamWrapper");
            model.unload();
            assertThat(GoldenCase.difference(sequential.forward(x), before)).isZero();
        }
    }
}
