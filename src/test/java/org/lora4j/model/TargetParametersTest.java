package org.lora4j.model;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.SGD;
import org.bytedeco.pytorch.SGDOptions;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.config.InitLoraWeights;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.LoraConfigBuilder;
import org.lora4j.layer.LoraWeights;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;
import org.lora4j.ops.Tensors;

/** Adapters of single parameters, beside what GoldenAdaptersTest holds for PEFT's. */
class TargetParametersTest {
    private static final String GATE_UP = "layers.0.experts.gate_up_proj";
    private static final String DOWN = "layers.1.experts.down_proj";
    /** Of gradient descent, small enough for losses in the hundreds. */
    private static final double RATE = 1e-5;

    private static final String[] BOTH = {"experts.gate_up_proj", "experts.down_proj"};

    @BeforeEach
    void seed() {
        torch.manual_seed(7);
    }

    private static MoeToys.Moe moe(boolean transposed, ScalarType type) {
        MoeToys.Moe net = new MoeToys.Moe(transposed);
        net.to(type, false);
        net.eval();
        return net;
    }

    /** An adapter whose factors are both random. */
    private static LoraConfigBuilder config(int r, double alpha, String... parameters) {
        return LoraConfig.builder()
                .r(r)
                .loraAlpha(alpha)
                .targetModules()
                .targetParameters(parameters)
                .initLoraWeights(InitLoraWeights.of(false));
    }

    private static Tensor input(ScalarType type) {
        return torch.randn(new long[] {2, 4, 6}).to(type);
    }

    private static Map<String, Tensor> copies(Module model) {
        Map<String, Tensor> copies = new LinkedHashMap<>();
        Parameters.of(model).forEach((path, p) -> copies.put(path, p.detach().clone()));
        return copies;
    }

    private static void assertSame(Module model, Map<String, Tensor> before) {
        Parameters.of(model).forEach((path, p) -> {
            assertThat(p.equal(before.get(path))).as(path).isTrue();
            assertThat(p.is_leaf() && !p.requires_grad()).as(path).isTrue();
        });
    }

    private static Tensor loss(Tensor output) {
        return output.to(ScalarType.Double).square().sum().div(new Scalar(2.0));
    }

    /** Base plus updates, by a sum over expert and rank that is written out; recorded for autograd. */
    private static Tensor adapted(Tensor base, boolean transposed, LoraWeights weights) {
        boolean stack = base.dim() == 3;
        long experts = stack ? base.size(0) : 1;
        List<Tensor> matrices = new ArrayList<>();
        for (long e = 0; e < experts; e++) {
            Tensor matrix = stack ? base.select(0, e) : base;
            for (long j = 0; j < weights.rank(); j++) {
                Tensor row = weights.a().select(0, e * weights.rank() + j);
                Tensor column = weights.b().select(1, j * experts + e);
                Tensor update = transposed ? torch.outer(row, column) : torch.outer(column, row);
                matrix = matrix.add(update, new Scalar(weights.scale()));
            }
            matrices.add(matrix);
        }
        return stack ? torch.stack(new TensorVector(matrices.toArray(new Tensor[0])), 0) : matrices.get(0);
    }

    static Stream<String> cases() throws IOException {
        List<String> withGradients = new ArrayList<>();
        for (String name : GoldenCase.names("parameters").toList()) {
            Path folder = GoldenCase.GOLDEN.resolve("parameters").resolve(name);
            try (MappedTensors expected = TensorFiles.open(folder.resolve("expected.safetensors"))) {
                if (expected.names().stream().anyMatch(key -> key.startsWith("gradient."))) {
                    withGradients.add(name);
                }
            }
        }
        return withGradients.stream();
    }

    @Test
    void mostCasesOfPeftHaveGradients() throws IOException {
        assertThat(cases()).hasSizeGreaterThan(20).contains("two", "transposed_both", "bfloat16", "with_modules", "linear");
    }

    @ParameterizedTest
    @MethodSource("cases")
    void gradientsAreThoseOfPeft(String name, @TempDir Path folder) throws IOException {
        GoldenCase golden =
                new GoldenCase(GoldenCase.GOLDEN.resolve("parameters").resolve(name));
        try (PointerScope scope = new PointerScope();
                MappedTensors expected = TensorFiles.open(golden.folder.resolve("expected.safetensors"))) {
            Module base = golden.base();
            LoraModel<Module> model = null;
            for (GoldenCase.Saved adapter : golden.adapters()) {
                if (model == null) {
                    model = Lora.load(base, adapter.folder(), adapter.name());
                } else {
                    model.loadAdapter(adapter.folder(), adapter.name());
                }
                model.setTrainable(adapter.name(), true);
            }
            model.setActive(golden.strings("active"));
            Tensor output = GoldenCase.forward(base, golden.input(expected));
            output.to(ScalarType.Float).square().sum().div(new Scalar(2.0)).backward();
            int compared = 0;
            for (String adapter : golden.strings("active")) {
                // A saved adapter whose factors are their own gradients has these under their keys.
                try (NoGradGuard noGrad = new NoGradGuard()) {
                    model.adapter(adapter).weights().values().stream()
                            .flatMap(weights -> weights.parts().values().stream())
                            .forEach(factor -> factor.copy_(factor.grad()));
                }
                model.save(folder, adapter);
                try (MappedTensors actual = TensorFiles.open(folder.resolve("adapter_model.safetensors"))) {
                    for (String key : actual.names()) {
                        Tensor wanted = expected.tensor("gradient." + adapter + "." + key);
                        // PEFT's factors pass through the half type on the way, in both directions.
                        double tolerance = golden.type() == ScalarType.Float ? 2e-5 : 12.0 / 256;
                        assertThat(GoldenCase.difference(actual.tensor(key), wanted))
                                .as(key)
                                .isLessThanOrEqualTo(tolerance * GoldenCase.largest(wanted));
                        compared++;
                    }
                }
            }
            assertThat(compared)
                    .isEqualTo((int) expected.names().stream()
                            .filter(key -> key.startsWith("gradient."))
                            .count());
        }
    }

    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void gradientsAreThoseOfAutogradAndOfDifferences(boolean transposed) {
        try (PointerScope scope = new PointerScope()) {
            MoeToys.Moe net = moe(transposed, ScalarType.Double);
            Tensor base = net.layers.get(0).experts.gateUp.detach().clone();
            LoraModel<MoeToys.Moe> model = Lora.wrap(net, config(2, 5, BOTH).build(), "one");
            model.addAdapter("two", config(3, 2, BOTH).useRslora(true).build());
            model.setActive("two", "one");
            Tensor x = input(ScalarType.Double);
            loss(net.forward(x)).backward();

            LoraWeights one = model.adapter("one").weights().get(GATE_UP);
            LoraWeights two = model.adapter("two").weights().get(GATE_UP);
            Tensor gradient = gradientOfTheWeight(net, x);
            for (LoraWeights each : List.of(one, two)) {
                Tensor a = each.a().grad().clone();
                Tensor b = each.b().grad().clone();
                each.a().mutable_grad().reset();
                each.b().mutable_grad().reset();
                adapted(base, transposed, each).mul(gradient).sum().backward();
                assertThat(GoldenCase.difference(a, each.a().grad())).isLessThan(1e-10 * GoldenCase.largest(a));
                assertThat(GoldenCase.difference(b, each.b().grad())).isLessThan(1e-10 * GoldenCase.largest(b));
                for (Tensor factor : List.of(each.a(), each.b())) {
                    assertThat(difference(model, net, x, factor))
                            .isCloseTo(factor.grad().select(0, 1).select(0, 2).item_double(), within(1e-4));
                }
            }
        }
    }

    /** The gradient of the loss with respect to the adapted parameter, by autograd on a model that has it as its weight. */
    private static Tensor gradientOfTheWeight(MoeToys.Moe net, Tensor x) {
        boolean transposed = net.layers.get(0).experts instanceof MoeToys.TransposedExperts;
        MoeToys.Moe plain = moe(transposed, ScalarType.Double);
        Map<String, Tensor> values = copies(net);
        Parameters.of(plain).forEach((path, p) -> p.set_data(values.get(path)));
        loss(plain.forward(x)).backward();
        return plain.layers.get(0).experts.gateUp.grad();
    }

    /** The central difference of the loss in one number of a factor. */
    private static double difference(LoraModel<MoeToys.Moe> model, MoeToys.Moe net, Tensor x, Tensor factor) {
        double step = 1e-6;
        double[] losses = new double[2];
        try (NoGradGuard noGrad = new NoGradGuard()) {
            Tensor number = factor.select(0, 1).select(0, 2);
            for (int i = 0; i < 2; i++) {
                number.add_(new Scalar(i == 0 ? -step : 2 * step));
                model.refresh();
                losses[i] = loss(net.forward(x)).item_double();
            }
            number.sub_(new Scalar(step));
            model.refresh();
        }
        return (losses[1] - losses[0]) / (2 * step);
    }

    @Test
    void trainingFollowsTheSameStepsAsWeightsMadeByAutograd() {
        try (PointerScope scope = new PointerScope()) {
            MoeToys.Moe net = moe(false, ScalarType.Double);
            Tensor base = net.layers.get(0).mix.detach().clone();
            LoraModel<MoeToys.Moe> model =
                    Lora.wrap(net, config(3, 4, "layers.0.mix").build(), "default");
            LoraWeights weights = model.adapter("default").weights().get("layers.0.mix");
            Tensor start = weights.a().detach().clone();
            Tensor a = start.clone();
            Tensor b = weights.b().detach().clone();
            SGD optimizer = new SGD(
                    new TensorVector(model.trainableParameters().toArray(new Tensor[0])), new SGDOptions(RATE));
            Tensor x = input(ScalarType.Double);
            Tensor target = torch.randn(new long[] {2, 4, 6}).to(ScalarType.Double);
            MoeToys.Block block = net.layers.get(0);
            for (int step = 0; step < 4; step++) {
                optimizer.zero_grad();
                // Two passes before their backward passes, whose gradients add up.
                Tensor first = loss(block.forward(x).sub(target));
                Tensor second = loss(block.forward(target).sub(x));
                first.backward();
                second.backward();
                optimizer.step();
                model.refresh();
            }

            MoeToys.Moe plain = moe(false, ScalarType.Double);
            model.disable();
            Map<String, Tensor> values = copies(net);
            Parameters.of(plain).forEach((path, p) -> {
                p.set_requires_grad(false);
                p.set_data(values.get(path));
            });
            MoeToys.Block other = plain.layers.get(0);
            for (int step = 0; step < 4; step++) {
                a.set_requires_grad(true);
                b.set_requires_grad(true);
                Tensor mix = base.add(b.matmul(a), new Scalar(4.0 / 3));
                Tensor sum = loss(forward(other, x, mix).sub(target)).add(loss(forward(other, target, mix).sub(x)));
                sum.backward();
                Tensor nextA = a.detach().sub(a.grad(), new Scalar(RATE));
                Tensor nextB = b.detach().sub(b.grad(), new Scalar(RATE));
                a = nextA;
                b = nextB;
            }
            assertThat(GoldenCase.difference(weights.a(), start)).isGreaterThan(1e-3);
            assertThat(GoldenCase.difference(weights.a(), a)).isLessThan(1e-12);
            assertThat(GoldenCase.difference(weights.b(), b)).isLessThan(1e-12);
        }
    }

    private static Tensor forward(MoeToys.Block block, Tensor x, Tensor mix) {
        Tensor y = block.experts.forward(x, block.router.forward(x)).add(block.shared.forward(x));
        return x.add(torch.linear(y, mix));
    }

    /** Optimizers of LibTorch change the data of parameters, which counts as no change of the tensor. */
    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void aGradientThroughAnOutdatedValueThrowsUntilRefreshed(boolean unseen) {
        try (PointerScope scope = new PointerScope()) {
            MoeToys.Moe net = moe(false, ScalarType.Float);
            LoraModel<MoeToys.Moe> model = Lora.wrap(net, config(2, 5, BOTH).build(), "default");
            Tensor x = input(ScalarType.Float);
            try (NoGradGuard noGrad = new NoGradGuard()) {
                model.trainableParameters().forEach(p -> (unseen ? p.data() : p).mul_(new Scalar(1.5)));
            }
            assertThatThrownBy(() -> loss(net.forward(x)).backward()).hasMessageContaining("LoraModel.refresh()");
            model.refresh();
            loss(net.forward(x)).backward();
            assertThat(model.trainableParameters())
                    .allMatch(p -> p.grad().defined() && p.grad().count_nonzero().item_long() > 0);
        }
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
            assertThat(GoldenCase.difference(
                            net.layers.get(1).experts.down, wide(base, transposed, model, "two")))
                    .isLessThanOrEqualTo(ulp * GoldenCase.largest(value));
            model.deleteAdapter("two");
            assertThat(model.activeAdapters()).containsExactly("one");
            assertThat(GoldenCase.difference(
                            net.layers.get(1).experts.down, wide(base, transposed, model, "one")))
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
            Parameters.of(net).forEach((path, p) -> assertThat(p.is_leaf()).as(path).isTrue());
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
            assertThat(GoldenCase.difference(net.layers.get(1).experts.down, base)).isZero();
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
                assertThat(Tensors.shape(saved.tensor(
                                "base_model.model.layers.0.base_layer.experts.base_layer.lora_A.weight")))
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
            assertThat(net.layers.get(0).experts.gateUp.equal(before.get(GATE_UP))).isTrue();
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
    void manyParametersHaveTheirOwnBackwardPass() {
        try (PointerScope scope = new PointerScope()) {
            int count = 60;
            Module net = new Module();
            List<MoeToys.Router> routers = new ArrayList<>();
            for (int i = 0; i < count; i++) {
                routers.add(net.register_module("r" + i, new MoeToys.Router()));
            }
            LoraModel<Module> model = Lora.wrap(net, config(1, 2, "weight").build(), "default");
            Tensor x = torch.randn(new long[] {4, 6});
            Tensor sum = torch.zeros(new long[] {});
            for (int i = 0; i < count; i++) {
                sum = sum.add(torch.linear(x, routers.get(i).weight).sum(), new Scalar(i + 1.0));
            }
            sum.backward();
            for (int i = 0; i < count; i++) {
                LoraWeights weights = model.adapter("default").weights().get("r" + i + ".weight");
                Tensor gradient = x.sum(0).unsqueeze(0).expand(3, 6).mul(new Scalar(2.0 * (i + 1)));
                assertThat(GoldenCase.difference(
                                weights.b().grad(),
                                gradient.matmul(weights.a().detach().t())))
                        .isLessThan(1e-3);
            }
        }
    }

    @Test
    void aTargetedParameterThatIsNotThereIsNamedWithNearMisses() {
        try (PointerScope scope = new PointerScope()) {
            MoeToys.Moe net = moe(false, ScalarType.Float);
            assertThatThrownBy(() -> Lora.wrap(net, config(2, 5, "experts.gate_up_prj").build(), "default"))
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
            assertThatThrownBy(() -> config(1, 2, BOTH).loraDropout(0.1).build()).hasMessageContaining("loraDropout");
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
                            "two",
                            LoraConfig.builder().targetModules("shared").build()))
                    .hasMessageContaining("layers.0.shared.weight")
                    .hasMessageContaining("lora.Linear");
            model.addAdapter(
                    "two", LoraConfig.builder().targetModules("head").build());
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
            assertThatThrownBy(() -> model.setActive("one", "three"))
                    .hasMessageContaining("layers.0.shared.weight");
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
            Tensor expected = before.add(
                    torch.linear(torch.linear(x, weights.a()), weights.b()), new Scalar(weights.scale()));
            assertThat(GoldenCase.difference(sequential.forward(x), expected)).isLessThan(1e-5);
            assertThat(model.layerStatus()).extracting(LayerStatus::type).containsExactly("lora.ParamWrapper");
            model.unload();
            assertThat(GoldenCase.difference(sequential.forward(x), before)).isZero();
        }
    }
}
