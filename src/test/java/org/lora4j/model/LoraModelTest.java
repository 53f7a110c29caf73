package org.lora4j.model;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AutoGradMode;
import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.SequentialImpl;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.lora4j.config.LoraConfig;
import org.lora4j.layer.LoraLinear;
import org.lora4j.layer.LoraWeights;
import org.lora4j.ops.LibTorch;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;

/** Adapters on modules a user wrote: a plain MLP, a convolution net, and blocks in lists, arrays and maps. */
class LoraModelTest {
    static {
        LibTorch.load();
    }

    private PointerScope scope;

    @BeforeEach
    void open() {
        scope = new PointerScope();
        torch.manual_seed(11);
    }

    @AfterEach
    void close() {
        scope.close();
    }

    private static LoraConfig config(int r, double alpha, String... targets) {
        return LoraConfig.builder()
                .r(r)
                .loraAlpha(alpha)
                .targetModules(targets)
                .initLoraWeights(false)
                .build();
    }

    private static Tensor dense(Tensor x, Tensor weight, Tensor bias, LoraWeights... adapters) {
        Tensor w = weight.detach();
        for (LoraWeights each : adapters) {
            w = w.add(each.b().matmul(each.a()).mul(new Scalar(each.scale())));
        }
        return torch.linear(x, w, bias.detach());
    }

    private static void assertNear(Tensor actual, Tensor expected) {
        assertThat(GoldenCase.difference(actual, expected))
                .isLessThanOrEqualTo(2e-5 * Math.max(1, GoldenCase.largest(expected)));
    }

    @Test
    void anMlpComputesWithTheAdapterAndTheBaseStaysFrozen() {
        Toys.Mlp net = new Toys.Mlp();
        Tensor x = torch.randn(7, 10);
        Tensor before = net.forward(x).detach().clone();
        LoraModel<Toys.Mlp> model = Lora.wrap(net, config(3, 7, "lin0", "lin1"), "a");
        assertThat(net.lin0).isInstanceOf(LoraLinear.class);
        LoraWeights w0 = model.adapter("a").weights().get("lin0");
        LoraWeights w1 = model.adapter("a").weights().get("lin1");
        assertThat(w0.scale()).isEqualTo(7.0 / 3);
        Tensor expected = dense(
                torch.relu(dense(x, net.lin0.weight(), net.lin0.bias(), w0)), net.lin1.weight(), net.lin1.bias(), w1);
        assertNear(net.forward(x), expected);
        try (NoGradGuard guard = new NoGradGuard()) {
            assertNear(net.forward(x), expected);
        }
        assertThat(net.lin0.weight().requires_grad()).isFalse();
        assertThat(model.trainableParameters()).hasSize(4).allMatch(Tensor::requires_grad);
        assertThat(model.trainableSummary())
                .isEqualTo("trainable params: 156 || all params: 418 || trainable%: 37.3206");
        assertThat(model.unload()).isSameAs(net);
        assertThat(net.lin0).isNotInstanceOf(LoraLinear.class);
        assertThat(GoldenCase.difference(net.forward(x), before)).isZero();
    }

    @Test
    void gradientsAreThoseOfTheDenseFormula() {
        Toys.Mlp net = new Toys.Mlp();
        LoraModel<Toys.Mlp> model = Lora.wrap(net, config(1, 5, "lin0"), "a");
        LoraWeights w = model.adapter("a").weights().get("lin0");
        Tensor x = torch.randn(5, 10);
        net.forward(x).pow(new Scalar(2.0)).sum().backward();
        Tensor gradA = w.a().grad().clone();
        Tensor gradB = w.b().grad().clone();
        assertThat(net.lin0.weight().grad().defined()).isFalse();
        w.a().mutable_grad().zero_();
        w.b().mutable_grad().zero_();
        Tensor hidden = torch.relu(dense(x, net.lin0.weight(), net.lin0.bias(), w));
        torch.linear(hidden, net.lin1.weight(), net.lin1.bias())
                .pow(new Scalar(2.0))
                .sum()
                .backward();
        assertNear(gradA, w.a().grad());
        assertNear(gradB, w.b().grad());
        assertThat(GoldenCase.largest(gradA)).isGreaterThan(1e-3);
    }

    @Test
    void blocksInListsArraysAndMapsAreReached() {
        Toys.Nested net = new Toys.Nested();
        Tensor x = torch.randn(3, 10);
        Tensor before = net.forward(x).detach();
        LoraModel<Toys.Nested> model = Lora.wrap(net, config(2, 3, "blocks.1.lin0", "head0", "head1", "last"), "a");
        assertThat(model.layerStatus().stream().map(LayerStatus::name))
                .containsExactlyInAnyOrder("blocks.1.lin0", "head0", "head1", "last");
        assertThat(net.blocks.get(1).lin0).isInstanceOf(LoraLinear.class);
        assertThat(net.blocks.get(0).lin0).isNotInstanceOf(LoraLinear.class);
        assertThat(net.heads[1]).isInstanceOf(LoraLinear.class);
        assertThat(net.named.get("last")).isInstanceOf(LoraLinear.class);
        assertThat(GoldenCase.difference(net.forward(x), before)).isGreaterThan(1e-3);
        model.unload();
        assertThat(net.heads[1]).isNotInstanceOf(LoraLinear.class);
        assertThat(GoldenCase.difference(net.forward(x), before)).isZero();
    }

    /** A module whose parts run inside C++. */
    private static final class Hidden extends Module {
        SequentialImpl all = new SequentialImpl();

        Hidden() {
            all.push_back(new LinearImpl(3, 4));
            all = register_module("all", all);
        }
    }

    @Test
    void aTargetInsideCppIsRefusedWithWhatToDo() {
        assertThatThrownBy(() -> Lora.wrap(new Hidden(), config(2, 3, "0"), "a"))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessageContaining("all.0")
                .hasMessageContaining("field");
    }

    @Test
    void convolutionsMergeUnlessTheyHaveGroups() {
        Toys.Net plain = Toys.of("conv2d");
        Tensor x = torch.randn(3, 5, 7, 9);
        LoraModel<Toys.Net> model = Lora.wrap(plain, config(3, 5, "conv2d"), "a");
        try (NoGradGuard guard = new NoGradGuard()) {
            Tensor apart = plain.forward(x);
            model.mergeAdapter();
            assertThat(GoldenCase.difference(plain.forward(x), apart))
                    .isLessThanOrEqualTo(1e-4 * GoldenCase.largest(apart));
        }
        Toys.Net grouped = Toys.of("conv2d_groups");
        LoraModel<Toys.Net> other = Lora.wrap(grouped, config(4, 3, "conv2d", "lin0"), "a");
        assertThatThrownBy(other::mergeAdapter)
                .isInstanceOf(UnsupportedOperationException.class)
                .hasMessageContaining("groups");
        assertThat(other.mergedAdapters()).isEmpty();
    }

    @Test
    void severalActiveAdaptersAddUpAndMergeWithOneRounding() {
        Toys.Mlp net = new Toys.Mlp();
        LoraModel<Toys.Mlp> model = Lora.wrap(net, config(3, 7, "lin0"), "a");
        model.addAdapter("b", config(1, 2, "lin0", "lin1"));
        assertThat(model.activeAdapters()).containsExactly("a");
        model.setActive("a", "b");
        Tensor x = torch.randn(4, 10);
        try (NoGradGuard guard = new NoGradGuard()) {
            Tensor both = net.forward(x).clone();
            Tensor before = net.lin0.weight().clone();
            model.mergeAdapter("a");
            assertNear(net.forward(x), both);
            model.mergeAdapter("b");
            assertThat(model.mergedAdapters()).containsExactly("a", "b");
            assertNear(net.forward(x), both);
            assertThatThrownBy(() -> model.deleteAdapter("a")).hasMessageContaining("unmergeAdapter()");
            assertThatThrownBy(() -> model.rows("a")).hasMessageContaining("unmergeAdapter()");
            try (LoraModel.Scope off = model.disabled()) {
                assertThat(net.lin0.weight().equal(before)).isTrue();
            }
            assertThat(model.mergedAdapters()).containsExactly("a", "b");
            model.unmergeAdapter();
            assertThat(net.lin0.weight().equal(before)).isTrue();
            assertNear(net.forward(x), both);
        }
    }

    @Test
    void aBrokenAdapterIsNotMergedAnywhere() {
        Toys.Mlp net = new Toys.Mlp();
        LoraModel<Toys.Mlp> model = Lora.wrap(net, config(2, 2, "lin0", "lin1"), "a");
        try (NoGradGuard guard = new NoGradGuard()) {
            Tensor first = net.lin0.weight().clone();
            model.adapter("a").weights().get("lin1").b().fill_(new Scalar(Double.NaN));
            assertThatThrownBy(() -> model.mergeAndUnload(true, Progress.NONE))
                    .isInstanceOf(ArithmeticException.class)
                    .hasMessageContaining("lin1");
            assertThat(net.lin0.weight().equal(first)).isTrue();
            assertThat(model.mergedAdapters()).isEmpty();
        }
    }

    @Test
    void everyRowHasItsOwnAdapterAlsoWithGradients() {
        Toys.Mlp net = new Toys.Mlp();
        LoraModel<Toys.Mlp> model = Lora.wrap(net, config(3, 7, "lin0"), "a");
        model.addAdapter("b", config(1, 2, "lin0", "lin1"));
        Tensor x = torch.randn(4, 10);
        String[] names = {"b", LoraModel.BASE, "a", "b"};
        List<Tensor> alone = new ArrayList<>();
        try (NoGradGuard guard = new NoGradGuard()) {
            for (int i = 0; i < names.length; i++) {
                model.setActive(names[i].equals(LoraModel.BASE) ? new String[0] : new String[] {names[i]});
                alone.add(net.forward(x.narrow(0, i, 1)));
            }
        }
        model.setActive("a");
        for (boolean grad : new boolean[] {false, true}) {
            try (AutoGradMode mode = new AutoGradMode(grad);
                    LoraModel.Scope rows = model.rows(names)) {
                Tensor y = net.forward(x);
                for (int i = 0; i < names.length; i++) {
                    assertNear(y.narrow(0, i, 1), alone.get(i));
                }
                assertThatThrownBy(() -> net.forward(torch.randn(3, 10))).hasMessageContaining("3 rows");
            }
        }
        assertThatThrownBy(() -> model.rows("a", "c")).hasMessageContaining("\"c\"");
    }

    @Test
    void anEmptyBatchPasses() {
        Toys.Mlp net = new Toys.Mlp();
        Lora.wrap(net, config(3, 7, "lin0"), "a");
        try (NoGradGuard guard = new NoGradGuard()) {
            assertThat(net.forward(torch.randn(0, 10)).size(1)).isEqualTo(2);
        }
    }

    @Test
    void dropoutAppliesInTrainingAlone() {
        Toys.Mlp net = new Toys.Mlp();
        LoraConfig dropping = config(3, 30, "lin0").toBuilder().loraDropout(0.5).build();
        Lora.wrap(net, dropping, "a");
        Tensor x = torch.randn(6, 10);
        net.eval();
        assertThat(GoldenCase.difference(net.forward(x), net.forward(x))).isZero();
        net.train(true);
        assertThat(GoldenCase.difference(net.forward(x), net.forward(x))).isGreaterThan(1e-3);
    }

    @Test
    void aWeightedSumIsTheSumOfTheUpdates() {
        Toys.Mlp net = new Toys.Mlp();
        LoraModel<Toys.Mlp> model = Lora.wrap(net, config(3, 7, "lin0"), "a");
        model.addAdapter("b", config(2, 5, "lin0", "lin1"));
        model.addWeightedAdapter(List.of("a", "b"), List.of(0.75, -1.5), "mix");
        LoraWeights a = model.adapter("a").weights().get("lin0");
        LoraWeights b = model.adapter("b").weights().get("lin0");
        LoraWeights mix = model.adapter("mix").weights().get("lin0");
        assertThat(mix.rank()).isEqualTo(5);
        assertThat(mix.scale()).isEqualTo(1);
        Tensor expected = a.b().matmul(a.a())
                .mul(new Scalar(0.75 * a.scale()))
                .sub(b.b().matmul(b.a()).mul(new Scalar(1.5 * b.scale())));
        assertNear(mix.b().matmul(mix.a()), expected);
        assertThat(model.adapter("mix").weights().get("lin1").rank()).isEqualTo(2);
    }

    @Test
    void savedAndLoadedItIsTheSame(@TempDir Path folder) throws IOException {
        Toys.Mlp net = new Toys.Mlp();
        LoraConfig whole =
                config(3, 7, "lin0").toBuilder().modulesToSave("lin1").build();
        LoraModel<Toys.Mlp> model = Lora.wrap(net, whole, "a");
        Tensor x = torch.randn(4, 10);
        try (NoGradGuard guard = new NoGradGuard()) {
            Tensor base = net.lin1.weight().clone();
            model.trainableParameters().forEach(p -> p.normal_());
            Tensor expected = net.forward(x).clone();
            model.save(folder, "a");
            model.unload();
            assertThat(net.lin1.weight().equal(base)).isTrue();
            LoraModel<Toys.Mlp> again = Lora.load(net, folder, "b");
            assertThat(GoldenCase.difference(net.forward(x), expected)).isZero();
            assertThat(again.trainableParameters()).isEmpty();
            again.setActive();
            assertThat(net.lin1.weight().equal(base)).isTrue();
            again.setActive("b");
            again.mergeAndUnload(true, Progress.NONE);
            assertNear(net.forward(x), expected);
        }
    }

    @Test
    void aFileThatDoesNotFitIsRefusedWithTheWholeList(@TempDir Path folder) throws IOException {
        LoraModel<Toys.Mlp> model = Lora.wrap(new Toys.Mlp(), config(3, 7, "lin0", "lin1"), "a");
        model.save(folder, "a");
        Path config = folder.resolve("adapter_config.json");
        Files.writeString(config, Files.readString(config).replace("\"r\": 3", "\"r\": 4"));
        Toys.Mlp fresh = new Toys.Mlp();
        assertThatThrownBy(() -> Lora.load(fresh, folder, "a"))
                .hasMessageContaining("lin0.lora_A")
                .hasMessageContaining("lin0.lora_B")
                .hasMessageContaining("lin1.lora_A")
                .hasMessageContaining("lin1.lora_B");
        assertThat(fresh.lin0).isNotInstanceOf(LoraLinear.class);
    }

    @Test
    void anAdapterThatTorchSaveWroteLoadsToo() throws IOException {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard();
                MappedTensors expected =
                        TensorFiles.open(GoldenCase.GOLDEN.resolve("format/adapter_bin_expected.safetensors"))) {
            Module net =
                    GoldenCase.base("toys/mlp.safetensors", "mlp", org.bytedeco.pytorch.global.torch.ScalarType.Float);
            Lora.load(net, GoldenCase.GOLDEN.resolve("format/adapter_bin"), "a");
            assertNear(GoldenCase.forward(net, expected.tensor("input")), expected.tensor("output"));
        }
    }

    @Test
    void otherMethodsThanLoraAreRefusedByName() {
        Map<String, Object> fields = new LinkedHashMap<>();
        fields.put("arrow_config", Map.of("top_k", 3));
        fields.put("kasa_config", Map.of("beta", 1e-4));
        fields.put("use_bdlora", Map.of("nblocks", 2));
        fields.put("use_qalora", true);
        fields.forEach((key, value) -> {
            LoraConfig config =
                    config(3, 7, "lin0").toBuilder().otherField(key, value).build();
            Toys.Mlp net = new Toys.Mlp();
            assertThatThrownBy(() -> Lora.wrap(net, config, "a"))
                    .as(key)
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessageContaining(key);
            assertThat(net.lin0).isNotInstanceOf(LoraLinear.class);
        });
    }

    @Test
    void namesAreChecked() {
        LoraModel<Toys.Mlp> model = Lora.wrap(new Toys.Mlp(), config(3, 7, "lin0"), "a");
        for (String name : List.of("", "a", "x.y", LoraModel.BASE)) {
            assertThatThrownBy(() -> model.addAdapter(name, config(3, 7, "lin0")))
                    .isInstanceOf(IllegalArgumentException.class);
        }
        assertThatThrownBy(() -> model.setActive("b")).hasMessageContaining("\"b\"");
        model.addAdapter("b", config(3, 7, "lin1"));
        model.deleteAdapter("a");
        assertThat(model.activeAdapters()).containsExactly("b");
        assertThat(model.adapterNames()).containsExactly("b");
    }
}
