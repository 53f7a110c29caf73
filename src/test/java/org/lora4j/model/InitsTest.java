package org.lora4j.model;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
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
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.config.CordaConfig;
import org.lora4j.config.InitLoraWeights;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.LoraConfigBuilder;
import org.lora4j.config.PeftCompat;
import org.lora4j.layer.Corda;
import org.lora4j.layer.InputCovariance;
import org.lora4j.layer.LoraWeights;
import org.lora4j.layer.Start;
import org.lora4j.ops.LibTorch;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;

/** Adapters that start from the weight or from data: on a model, switched off, saved, converted. */
class InitsTest {
    static {
        LibTorch.load();
    }

    private static LoraConfigBuilder config(String init) {
        return LoraConfig.builder()
                .r(3)
                .loraAlpha(7)
                .targetModules("lin0", "lin1")
                .rankPattern(Map.of("lin1", 1))
                .initLoraWeights(init);
    }

    private static LoraConfig complete(String init) {
        LoraConfigBuilder b = config(init);
        return (init.equals("loftq") ? b.otherField("loftq_config", Map.of("loftq_bits", 8)) : b).build();
    }

    private static List<CalibrationBatch> batches(Toys.Mlp net, int count, boolean backward) {
        return java.util.stream.IntStream.range(0, count)
                .<CalibrationBatch>mapToObj(i -> () -> {
                    Tensor y = net.forward(torch.randn(32, 10));
                    if (backward) {
                        y.mul(y).mean().backward();
                    }
                })
                .toList();
    }

    private static LoraModel<Toys.Mlp> start(Toys.Mlp net, String init) {
        LoraModel<Toys.Mlp> model = new LoraModel<>(net, Set.of());
        switch (init) {
            case "eva" -> model.addAdapter("a", complete(init), batches(net, 8, false));
            case "corda" -> model.addAdapter("a", complete(init), batches(net, 3, false));
            case "lora_ga" -> model.addAdapter("a", complete(init), batches(net, 3, true));
            default -> model.addAdapter("a", complete(init));
        }
        return model;
    }

    @ParameterizedTest
    @ValueSource(strings = {"pissa", "pissa_niter_4", "olora", "eva", "corda", "lora_ga", "mica", "loftq"})
    void atFirstTheModelComputesWhatItDidAndOffExactlyThat(String init, @TempDir Path folder) throws IOException {
        try (PointerScope scope = new PointerScope()) {
            torch.manual_seed(11);
            Toys.Mlp net = new Toys.Mlp();
            Tensor x = torch.randn(5, 10);
            Tensor weight = net.lin0.weight().detach().clone();
            Tensor before = net.forward(x).detach().clone();
            LoraModel<Toys.Mlp> model = start(net, init);
            assertThat(net.lin0.weight().grad().defined()).isFalse();
            assertThat(net.forward(x).equal(before)).as("inactive").isTrue();
            model.setActive("a");
            boolean changes = InitLoraWeights.of(init).changesBase();
            assertThat(net.lin0.weight().equal(weight)).isEqualTo(!changes);
            double allowed = init.equals("loftq") ? 0.02 : 2e-5;
            assertThat(GoldenCase.difference(net.forward(x), before)).isLessThan(allowed);
            // One step of training, then every way of switching and merging.
            Tensor loss = net.forward(x).pow(new Scalar(2)).sum();
            loss.backward();
            try (NoGradGuard guard = new NoGradGuard()) {
                for (Tensor parameter : model.trainableParameters()) {
                    assertThat(parameter.grad().defined()).isTrue();
                    parameter.add_(torch.randn_like(parameter).mul(new Scalar(0.2)));
                }
                assertThat(model.trainableParameters()).hasSize(init.equals("mica") ? 2 : 4);
                Tensor trained = net.forward(x).clone();
                assertThat(GoldenCase.difference(trained, before)).isGreaterThan(0.01);
                model.mergeAdapter();
                assertThat(GoldenCase.difference(net.forward(x), trained)).isLessThan(1e-4);
                model.disable();
                assertThat(net.forward(x).equal(before)).isTrue();
                assertThat(net.lin0.weight().equal(weight)).isTrue();
                model.enable();
                model.unmergeAdapter();
                assertThat(net.forward(x).equal(trained)).isTrue();
                if (changes && !init.equals("loftq")) {
                    model.saveConverted(folder, "a");
                    Toys.Mlp plain = copy(net, model);
                    LoraModel<Toys.Mlp> converted = Lora.load(plain, folder, "c");
                    assertThat(converted.adapter("c").config().r()).isEqualTo(6);
                    assertThat(GoldenCase.difference(plain.forward(x), trained)).isLessThan(1e-4);
                } else if (!init.equals("mica")) {
                    assertThatThrownBy(() -> model.saveConverted(folder, "a")).hasMessageContaining(init);
                }
                assertThat(model.unload().forward(x).equal(before)).isTrue();
            }
        }
    }

    /** A second network with the base weights of the first. */
    private static Toys.Mlp copy(Toys.Mlp net, LoraModel<Toys.Mlp> model) {
        Toys.Mlp copy = new Toys.Mlp();
        try (LoraModel.Scope off = model.disabled()) {
            Map<String, Tensor> own = Parameters.of(net);
            Parameters.of(copy)
                    .forEach((path, parameter) -> parameter.set_data(
                            Objects.requireNonNull(own.get(path)).detach().clone()));
        }
        return copy;
    }

    @Test
    void evaGivesRanksByVariance() {
        try (PointerScope scope = new PointerScope()) {
            torch.manual_seed(12);
            Toys.Mlp net = new Toys.Mlp();
            LoraModel<Toys.Mlp> model = start(net, "eva");
            LoraConfig found = model.adapter("a").config();
            int sum = 0;
            for (Map.Entry<String, LoraWeights> each :
                    model.adapter("a").weights().entrySet()) {
                Tensor a = each.getValue().a().detach();
                sum += each.getValue().rank();
                assertThat(found.rankFor(each.getKey()))
                        .isEqualTo(each.getValue().rank());
                // Principal components are orthonormal, and the scale is what it was.
                Tensor gram = a.matmul(a.t());
                assertThat(GoldenCase.difference(gram, torch.eye(a.size(0)))).isLessThan(1e-4);
                assertThat(each.getValue().b().count_nonzero().item_long()).isZero();
            }
            assertThat(sum).isEqualTo(4);
        }
    }

    @Test
    void cordaSeesTheInputsOfEachLayer() {
        try (PointerScope scope = new PointerScope()) {
            torch.manual_seed(13);
            Toys.Mlp net = new Toys.Mlp();
            Tensor x = torch.randn(6, 10);
            LoraConfig config = complete("corda");
            CordaConfig settings = CordaConfig.of(config);
            Start expected;
            try (InputCovariance covariance = new InputCovariance(settings)) {
                covariance.add(x);
                expected = Corda.start(net.lin0.weight(), 3, 7.0 / 3, covariance.mean(), settings);
            }
            LoraModel<Toys.Mlp> model = new LoraModel<>(net, Set.of());
            model.addAdapter("a", config, List.of((CalibrationBatch) () -> net.forward(x)));
            LoraWeights weights =
                    Objects.requireNonNull(model.adapter("a").weights().get("lin0"));
            assertThat(weights.a().equal(expected.a())).isTrue();
            assertThat(weights.b().equal(expected.b())).isTrue();
        }
    }

    @Test
    void dataIsAskedForAndChecked() {
        Toys.Mlp net = new Toys.Mlp();
        LoraModel<Toys.Mlp> model = new LoraModel<>(net, Set.of());
        Module before = net.lin0;
        for (String init : List.of("eva", "corda", "lora_ga")) {
            assertThatThrownBy(() -> model.addAdapter("a", complete(init))).hasMessageContaining("calibration batches");
            assertThatThrownBy(() -> model.addAdapter("a", complete(init), List.of()))
                    .hasMessageContaining("no calibration batch");
        }
        assertThatThrownBy(() -> model.addAdapter("a", complete("lora_ga"), batches(net, 1, false)))
                .hasMessageContaining("backward()");
        assertThatThrownBy(() -> model.addAdapter("a", complete("pissa"), batches(net, 1, false)))
                .hasMessageContaining("looks at no data");
        assertThatThrownBy(() -> model.addAdapter(
                        "a", complete("pissa").toBuilder().r(40).build()))
                .hasMessageContaining("layer 'lin0'");
        LoraConfig unknown = complete("pissa").toBuilder()
                .keepUnknown(true)
                .initLoraWeights("nonsense")
                .build();
        assertThatThrownBy(() -> model.addAdapter("a", unknown)).hasMessageContaining("does not know");
        assertThat(net.lin0).isSameAs(before);
        assertThat(model.adapterNames()).isEmpty();
    }

    @Test
    void onAHalfBaseTheResidualIsOfItsType() {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            torch.manual_seed(14);
            Toys.Mlp net = new Toys.Mlp();
            net.to(ScalarType.BFloat16, false);
            Tensor x = torch.randn(5, 10).to(ScalarType.BFloat16);
            Tensor before = net.forward(x).clone();
            LoraModel<Toys.Mlp> model = start(net, "pissa");
            model.setActive("a");
            assertThat(net.lin0.weight().dtype().toScalarType().intern()).isEqualTo(ScalarType.BFloat16);
            assertThat(GoldenCase.difference(net.forward(x), before)).isLessThan(0.05);
        }
    }

    @Test
    void peftLeavesTheResidualInTheModelWhileTheAdapterIsOff() throws IOException {
        GoldenCase golden = new GoldenCase(GoldenCase.GOLDEN.resolve("inits/pissa_mlp"));
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard();
                MappedTensors expected = TensorFiles.open(golden.folder.resolve("expected.safetensors"))) {
            GoldenCase.Saved adapter = golden.adapters().get(0);
            for (Set<PeftCompat> compat : List.of(Set.<PeftCompat>of(), Set.of(PeftCompat.RESIDUAL_STAYS))) {
                Module base = golden.base();
                LoraModel<Module> model = Lora.load(base, adapter.folder(), "a", compat);
                Tensor x = golden.input(expected);
                assertThat(GoldenCase.difference(GoldenCase.forward(base, x), GoldenCase.output(expected, "")))
                        .isLessThan(1e-4);
                model.disable();
                double off = GoldenCase.difference(GoldenCase.forward(base, x), GoldenCase.output(expected, "base_"));
                if (compat.isEmpty()) {
                    assertThat(off).isLessThan(1e-5);
                } else {
                    assertThat(off).isGreaterThan(0.01);
                }
                model.unload();
                assertThat(GoldenCase.difference(GoldenCase.forward(base, x), GoldenCase.output(expected, "base_")))
                        .isLessThan(1e-5);
            }
        }
    }
}
