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
import java.util.ArrayList;
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
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.layer.LoraWeights;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;

/** Gradients of the adapters of single parameters: those of PEFT, of autograd and of differences. */
class ParameterGradientsTest {
    private static final String GATE_UP = "layers.0.experts.gate_up_proj";
    private static final String[] BOTH = {"experts.gate_up_proj", "experts.down_proj"};

    /** Of gradient descent, small enough for losses in the hundreds. */
    private static final double RATE = 1e-5;

    @BeforeEach
    void seed() {
        torch.manual_seed(7);
    }

    private static Tensor loss(Tensor output) {
        return output.to(ScalarType.Double).square().sum().div(new Scalar(2.0));
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
        assertThat(cases())
                .hasSizeGreaterThan(20)
                .contains("two", "transposed_both", "bfloat16", "with_modules", "linear");
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
            assertThat(compared).isEqualTo((int) expected.names().stream()
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
            SGD optimizer =
                    new SGD(new TensorVector(model.trainableParameters().toArray(new Tensor[0])), new SGDOptions(RATE));
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
                Tensor sum = loss(forward(other, x, mix).sub(target))
                        .add(loss(forward(other, target, mix).sub(x)));
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
                    .allMatch(
                            p -> p.grad().defined() && p.grad().count_nonzero().item_long() > 0);
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
}
