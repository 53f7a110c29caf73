package org.lora4j.model;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.config.LoraConfig;
import org.lora4j.layer.MergeBase;
import org.lora4j.layer.MergeChoice;
import org.lora4j.layer.MergeReport;
import org.lora4j.layer.QuantizationOptions;
import org.lora4j.layer.QuantizedLinear;
import org.lora4j.layer.QuantizedMerge;
import org.lora4j.model.causal.CausalLM;
import org.lora4j.ops.LibTorch;
import org.lora4j.ops.LowRank;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.QuantizedWeight;
import org.lora4j.ops.TensorFiles;
import org.lora4j.ops.Tensors;

/** Adapters on quantized models. */
class QloraTest {
    private static final Path GOLDEN = Path.of("src/test/resources/golden");

    private PointerScope scope;

    @BeforeEach
    void open() {
        LibTorch.load();
        torch.manual_seed(3);
        scope = new PointerScope();
    }

    @AfterEach
    void close() {
        scope.close();
    }

    @Test
    void logitsAreThoseOfPeftOnTheQuantizedModel() throws IOException {
        Path folder = GOLDEN.resolve("quantization/llama_nf4");
        try (CausalLM model = CausalLM.load(folder);
                NoGradGuard noGrad = new NoGradGuard();
                MappedTensors golden = TensorFiles.open(folder.resolve("expected.safetensors"))) {
            Tensor ids = golden.tensor("input_ids");
            LoraModel<CausalLM> adapted =
                    Lora.load(model, GOLDEN.resolve("adapters/llama_all_linear/adapter"), "default");
            close(model.forward(ids), golden.tensor("adapter_logits"));
            adapted.unload();
            close(model.forward(ids), golden.tensor("logits"));
        }
    }

    private static void close(Tensor actual, Tensor expected) {
        double largest = expected.abs().max().item_double();
        assertThat(actual.sub(expected).abs().max().item_double()).isLessThan(1e-5 * largest);
    }

    @Test
    void adaptersTrainOnAQuantizedModelAndTheBaseStays() {
        Toys.Mlp net = new Toys.Mlp();
        Map<String, QuantizedLinear> layers = Quantization.quantize(net, QuantizationOptions.nf4());
        List<Tensor> packed =
                layers.values().stream().map(layer -> layer.weight().clone()).toList();
        LoraModel<Toys.Mlp> model = Lora.wrap(
                net,
                LoraConfig.builder()
                        .r(3)
                        .loraAlpha(5)
                        .targetModules("lin0", "lin1")
                        .initLoraWeights(false)
                        .build(),
                "default");
        Tensor x = torch.randn(16, 10);
        Tensor target = torch.randn(16, 2);
        double first = 0;
        double last = 0;
        for (int step = 0; step < 40; step++) {
            try (PointerScope inner = new PointerScope()) {
                Tensor loss = torch.mse_loss(net.forward(x), target);
                loss.backward();
                last = loss.item_double();
                first = step == 0 ? last : first;
                try (NoGradGuard noGrad = new NoGradGuard()) {
                    for (Tensor parameter : model.trainableParameters()) {
                        assertThat(Tensors.type(parameter)).isEqualTo(ScalarType.Float);
                        parameter.sub_(parameter.grad().mul(new Scalar(0.05)));
                        parameter.grad().zero_();
                    }
                }
            }
        }
        assertThat(last).isLessThan(0.8 * first);
        int i = 0;
        for (QuantizedLinear layer : layers.values()) {
            assertThat(layer.weight().equal(packed.get(i++))).isTrue();
        }
        assertThat(model.unload().lin0).isSameAs(layers.get("lin0"));
    }

    private static LoraModel<Toys.Mlp> adapted(Toys.Mlp net, boolean dora) {
        LoraConfig config = LoraConfig.builder()
                .r(3)
                .loraAlpha(5)
                .targetModules("lin0", "lin1")
                .initLoraWeights(false)
                .otherField("use_dora", dora)
                .build();
        return Lora.wrap(net, config, "default");
    }

    @Test
    void aMergeIntoAQuantizedLayerNeedsAChoice() {
        Toys.Mlp net = new Toys.Mlp();
        Quantization.quantize(net, QuantizationOptions.int8());
        LoraModel<Toys.Mlp> model = adapted(net, false);
        assertThatThrownBy(model::mergeAdapter)
                .isInstanceOf(IllegalStateException.class)
                .hasMessageContaining("lin0")
                .hasMessageContaining("mergeInto");
        assertThatThrownBy(() -> model.mergeInto(MergeBase.ORIGINAL)).isInstanceOf(IllegalArgumentException.class);
        model.mergeInto(new MergeChoice(MergeBase.ORIGINAL, path -> null));
        assertThatThrownBy(model::mergeAdapter)
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessageContaining("lin0");
        assertThat(model.mergedAdapters()).isEmpty();
    }

    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void whatIsMergedIntoIsTheCallersChoice(boolean int8) {
        Toys.Mlp net = new Toys.Mlp();
        Map<String, Tensor> originals = Map.of(
                "lin0", net.lin0.weight().detach().clone(),
                "lin1", net.lin1.weight().detach().clone());
        Map<String, QuantizedLinear> layers =
                Quantization.quantize(net, int8 ? QuantizationOptions.int8() : QuantizationOptions.nf4());
        QuantizedLinear layer = layers.get("lin0");
        Tensor packed = layer.quantized().packed().clone();
        Tensor dense = layer.dequantized(ScalarType.Float);
        LoraModel<Toys.Mlp> model = adapted(net, false);
        List<LowRank> updates =
                List.of(model.adapter("default").weights().get("lin0").lowRank());
        QuantizedWeight again = QuantizedMerge.requantized(layer.quantized(), updates);
        Tensor x = torch.randn(5, 10);
        try (NoGradGuard noGrad = new NoGradGuard()) {
            Tensor apart = net.forward(x);

            model.mergeInto(MergeBase.DEQUANTIZED);
            model.mergeAdapter();
            close(net.forward(x), apart);
            assertThat(layer.weight().equal(packed)).isTrue();
            Tensor delta = layer.dequantized(ScalarType.Float).sub(dense);
            model.unmergeAdapter();
            assertThat(net.forward(x).equal(apart)).isTrue();

            model.mergeInto(new MergeChoice(MergeBase.ORIGINAL, originals::get));
            model.mergeAdapter();
            close(layer.dequantized(ScalarType.Float), originals.get("lin0").add(delta));
            MergeReport report = model.mergeReports().get("lin0");
            double error = originals.get("lin0").sub(dense).norm().item_double();
            assertThat(report.quantizationError().getAsDouble()).isCloseTo(error, within(1e-5));
            assertThat(report.deltaNorm()).isCloseTo(delta.norm().item_double(), within(1e-4));
            model.unmergeAdapter();

            model.mergeInto(MergeBase.REQUANTIZED);
            model.mergeAdapter();
            assertThat(layer.quantized().packed().equal(again.packed())).isTrue();
            assertThat(layer.quantized().packed().equal(packed)).isFalse();
            assertThat(model.mergeReports().get("lin0").deltaKept()).isPresent();
            model.unmergeAdapter();
            assertThat(layer.quantized().packed().equal(packed)).isTrue();
            assertThat(net.forward(x).equal(apart)).isTrue();
        }
    }

    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void mergedForGoodTheLayersAreFullAgainOrStayQuantized(boolean dora) {
        for (MergeBase base : List.of(MergeBase.DEQUANTIZED, MergeBase.REQUANTIZED)) {
            Toys.Mlp net = new Toys.Mlp();
            Quantization.quantize(net, QuantizationOptions.int8());
            LoraModel<Toys.Mlp> model = adapted(net, dora);
            if (dora) {
                model.adapter("default")
                        .weights()
                        .values()
                        .forEach(each ->
                                each.magnitude().set_data(each.magnitude().mul(new Scalar(1.5))));
            }
            Tensor x = torch.randn(5, 10);
            try (NoGradGuard noGrad = new NoGradGuard()) {
                Tensor apart = net.forward(x);
                model.mergeInto(base);
                Toys.Mlp merged = model.mergeAndUnload();
                double moved = merged.forward(x).sub(apart).abs().max().item_double();
                double largest = apart.abs().max().item_double();
                boolean quantized = base == MergeBase.REQUANTIZED;
                assertThat(moved).isLessThan((quantized ? 0.03 : 1e-5) * largest);
                assertThat(merged.lin0 instanceof QuantizedLinear).isEqualTo(quantized);
                assertThat(model.mergeReports()).hasSize(dora ? 0 : 2);
            }
        }
    }

    @Test
    void aStartThatChangesTheBaseIsRefusedWhereTheBaseIsQuantized() {
        Toys.Mlp net = new Toys.Mlp();
        Quantization.quantize(net, QuantizationOptions.nf4());
        LoraConfig pissa = LoraConfig.builder()
                .r(2)
                .targetModules("lin0")
                .initLoraWeights("pissa")
                .build();
        assertThatThrownBy(() -> Lora.wrap(net, pissa, "default"))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessageContaining("quantized");
    }
}
