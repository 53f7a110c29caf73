package org.lora4j.model;

import static org.assertj.core.api.Assertions.assertThat;

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
import org.lora4j.config.LoraConfig;
import org.lora4j.layer.QuantizationOptions;
import org.lora4j.layer.QuantizedLinear;
import org.lora4j.model.causal.CausalLM;
import org.lora4j.ops.LibTorch;
import org.lora4j.ops.MappedTensors;
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
}
