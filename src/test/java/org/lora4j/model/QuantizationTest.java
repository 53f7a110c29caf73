package org.lora4j.model;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.lora4j.config.LoraConfig;
import org.lora4j.layer.QuantizationOptions;
import org.lora4j.layer.QuantizedLinear;
import org.lora4j.ops.LibTorch;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;
import org.lora4j.ops.Tensors;

class QuantizationTest {
    @TempDir
    Path folder;

    private PointerScope scope;

    @BeforeEach
    void open() {
        LibTorch.load();
        torch.manual_seed(8);
        scope = new PointerScope();
    }

    @AfterEach
    void close() {
        scope.close();
    }

    private static double difference(Tensor a, Tensor b) {
        return a.sub(b).abs().max().item_double();
    }

    @Test
    void layersAreReplacedWhereverTheModelHoldsThem() {
        Toys.Nested net = new Toys.Nested();
        Tensor x = torch.randn(4, 10);
        Tensor before = net.forward(x).detach();
        Map<String, QuantizedLinear> layers = Quantization.quantize(net, QuantizationOptions.nf4());
        assertThat(layers.keySet())
                .containsExactlyInAnyOrder(
                        "blocks.0.lin0",
                        "blocks.0.lin1",
                        "blocks.1.lin0",
                        "blocks.1.lin1",
                        "blocks.2.lin0",
                        "blocks.2.lin1",
                        "head0",
                        "head1",
                        "last");
        assertThat(net.blocks.get(1).lin0).isSameAs(layers.get("blocks.1.lin0"));
        assertThat(net.heads[1]).isSameAs(layers.get("head1"));
        assertThat(net.named.get("last")).isSameAs(layers.get("last"));
        Tensor after = net.forward(x).detach();
        assertThat(difference(after, before)).isBetween(1e-6, 1.0);
        assertThat(Quantization.quantize(net, QuantizationOptions.nf4()))
                .as("again")
                .isEmpty();

        assertThat(Quantization.dequantize(net, ScalarType.Float)).isEqualTo(new java.util.TreeSet<>(layers.keySet()));
        assertThat(net.heads[1].getClass()).isEqualTo(LinearImpl.class);
        assertThat(difference(net.forward(x).detach(), after)).isLessThan(1e-5);
    }

    @Test
    void layersToSkipAreLeft() {
        Toys.Nested net = new Toys.Nested();
        Set<String> quantized = Quantization.quantize(
                        net, QuantizationOptions.int8(), List.of("blocks.1", "lin1", "last"))
                .keySet();
        assertThat(quantized).containsExactlyInAnyOrder("blocks.0.lin0", "blocks.2.lin0", "head0", "head1");
        assertThatThrownBy(() -> Quantization.quantize(new Toys.Mlp(), QuantizationOptions.nf4(), List.of("lin7")))
                .hasMessageContaining("skip has \"lin7\", which no module has; near misses: [lin");
    }

    @Test
    void adaptersComeAfterwards() {
        Toys.Mlp net = new Toys.Mlp();
        Lora.wrap(net, LoraConfig.builder().targetModules("lin0").build(), "default");
        assertThatThrownBy(() -> Quantization.quantize(net, QuantizationOptions.nf4()))
                .hasMessageContaining("the layers [lin0] have adapters: unload them first");
        assertThatThrownBy(() -> Quantization.dequantize(net, ScalarType.Float)).hasMessageContaining("have adapters");
    }

    @Test
    void aBrokenWeightIsNamed() {
        Toys.Mlp net = new Toys.Mlp();
        net.lin1.weight().detach().fill_(new Scalar(Double.NaN));
        assertThatThrownBy(() -> Quantization.quantize(net, QuantizationOptions.nf4()))
                .isInstanceOf(ArithmeticException.class)
                .hasMessageContaining("layer 'lin1': the weight Float[2, 20] holds NaN or infinity");
    }

    @Test
    void aModelIsWrittenAndReadInTheFormOfBitsandbytes() throws IOException {
        Toys.Mlp net = new Toys.Mlp();
        Quantization.quantize(net, QuantizationOptions.nf4(), List.of("lin1"));
        Tensor x = torch.randn(3, 10);
        Tensor expected = net.forward(x).detach();
        Map<String, Tensor> tensors = Quantization.tensors(net);
        assertThat(tensors.keySet())
                .containsExactlyInAnyOrder(
                        "lin0.bias",
                        "lin0.weight",
                        "lin0.weight.absmax",
                        "lin0.weight.quant_map",
                        "lin0.weight.nested_absmax",
                        "lin0.weight.nested_quant_map",
                        "lin0.weight.quant_state.bitsandbytes__nf4",
                        "lin1.weight",
                        "lin1.bias");
        Path file = folder.resolve("model.safetensors");
        TensorFiles.write(file, tensors, TensorFiles.METADATA);
        Toys.Mlp other = new Toys.Mlp();
        try (MappedTensors files = TensorFiles.open(file)) {
            Map<String, QuantizedLinear> read = Quantization.load(other, files, ScalarType.Float);
            assertThat(read.keySet()).containsExactly("lin0");
            assertThat(read.get("lin0").computeType()).isEqualTo(ScalarType.Float);
            other.lin0.bias().set_data(files.tensor("lin0.bias"));
            other.lin1.weight().set_data(files.tensor("lin1.weight"));
            other.lin1.bias().set_data(files.tensor("lin1.bias"));
            assertThat(other.forward(x).equal(expected)).isTrue();

            assertThatThrownBy(() -> Quantization.load(new Toys.Conv1dNet(), files, null))
                    .hasMessageContaining("layer 'lin0': the quantized weight is (20, 10), but the layer takes 42");
            assertThatThrownBy(() -> Quantization.load(new Toys.HfMlp(), files, null))
                    .hasMessageContaining("quantized weights for [lin0], where the model has no linear layer");
        }
    }

    @Test
    void theConfigurationSaysHowAndWhatIsLeftOut() {
        Toys.Mlp net = new Toys.Mlp();
        assertThat(Quantization.config(net, ScalarType.Float)).isNull();
        Quantization.quantize(net, QuantizationOptions.nf4().withDoubleQuant(false), List.of("lin1"));
        assertThat(Quantization.config(net, ScalarType.BFloat16))
                .containsEntry("quant_method", "bitsandbytes")
                .containsEntry("load_in_4bit", true)
                .containsEntry("load_in_8bit", false)
                .containsEntry("llm_int8_skip_modules", List.of("lin1"))
                .containsEntry("bnb_4bit_quant_type", "nf4")
                .containsEntry("bnb_4bit_use_double_quant", false)
                .containsEntry("bnb_4bit_compute_dtype", "bfloat16");
        Quantization.quantize(net, QuantizationOptions.int8());
        assertThatThrownBy(() -> Quantization.config(net, ScalarType.Float))
                .hasMessageContaining("quantized in several ways");
    }

    @Test
    void memoryIsAQuarterOfHalfPrecision() {
        Toys.Mlp net = new Toys.Mlp();
        QuantizedLinear layer =
                Quantization.quantize(net, QuantizationOptions.nf4()).get("lin0");
        assertThat(layer.quantized().packed().nbytes()).isEqualTo(20 * 10 / 2);
        assertThat(Tensors.describe(net.lin0.weight())).isEqualTo("Byte[100, 1]");
    }
}
