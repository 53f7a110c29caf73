package org.lora4j.layer;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.lora4j.layer.QuantizedLinearTest.close;

import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import org.assertj.core.data.Percentage;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.ops.LibTorch;
import org.lora4j.ops.LowRank;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.QuantizedFiles;
import org.lora4j.ops.QuantizedWeight;
import org.lora4j.ops.TensorFiles;

class QuantizedMergeTest {
    private static final Path GOLDEN = Path.of("src/test/resources/golden/quantization");

    private PointerScope scope;

    @BeforeEach
    void open() {
        LibTorch.load();
        torch.manual_seed(6);
        scope = new PointerScope();
    }

    @AfterEach
    void closeScope() {
        scope.close();
    }

    /** PEFT 0.21 with an adapter on layers of bitsandbytes: forward, backward and merge. */
    @ParameterizedTest
    @ValueSource(strings = {"qlora", "qlora_int8"})
    void agreesWithPeftOnQuantizedLayers(String name) throws IOException {
        Scalar scale = new Scalar(5.0 / 3);
        try (MappedTensors golden = TensorFiles.open(GOLDEN.resolve(name + ".safetensors"))) {
            Tensor x = golden.tensor("x").clone();
            x.requires_grad_(true);
            QuantizedLinear up = layer(golden, "up", 10, 24);
            QuantizedLinear down = layer(golden, "down", 24, 7);
            Tensor[] a = {factor(golden, "lora_A.up"), factor(golden, "lora_A.down")};
            Tensor[] b = {factor(golden, "lora_B.up"), factor(golden, "lora_B.down")};
            Tensor hidden = torch.relu(up.forward(x).add(torch.linear(torch.linear(x, a[0]), b[0]), scale));
            Tensor y = down.forward(hidden).add(torch.linear(torch.linear(hidden, a[1]), b[1]), scale);
            QuantizedLinearTest.backward(y, golden.tensor("grad_y"));
            close(y.detach(), golden.tensor("y"), 1e-6);
            close(x.grad(), golden.tensor("grad_x"), 1e-6);
            QuantizedLinear[] layers = {up, down};
            String[] paths = {"up", "down"};
            for (int i = 0; i < 2; i++) {
                close(a[i].grad(), golden.tensor("grad_A." + paths[i]), 1e-6);
                close(b[i].grad(), golden.tensor("grad_B." + paths[i]), 1e-6);
                List<LowRank> updates = List.of(new LowRank(a[i].detach(), b[i].detach(), 5.0 / 3));
                QuantizedWeight merged = QuantizedMerge.requantized(layers[i].quantized(), updates);
                QuantizedWeight peft = QuantizedFiles.read(golden, "merged." + paths[i]);
                assertThat(merged.packed().equal(peft.packed())).isTrue();
                close(merged.dequantize(ScalarType.Float), peft.dequantize(ScalarType.Float), 1e-6);
                layers[i].close();
            }
        }
    }

    private static QuantizedLinear layer(MappedTensors golden, String path, long in, long out) throws IOException {
        String bias = "base." + path + ".bias";
        LinearImpl plain = QuantizedLinearTest.linear(in, out, golden.names().contains(bias));
        if (golden.names().contains(bias)) {
            plain.bias().set_requires_grad(false);
            plain.bias().copy_(golden.tensor(bias));
        }
        QuantizedLinear layer = QuantizedLinear.of(plain, QuantizedFiles.read(golden, "base." + path), null);
        double error = layer.quantizationError(golden.tensor("original." + path + ".weight"));
        assertThat(error).isBetween(1e-3, 0.5);
        return layer;
    }

    private static Tensor factor(MappedTensors golden, String name) {
        Tensor factor = golden.tensor(name).clone();
        factor.requires_grad_(true);
        return factor;
    }

    @ParameterizedTest
    @CsvSource({"0.0001, true", "1, false"})
    void theReportSaysWhetherTheErrorExceedsTheAdapters(double factor, boolean exceeds) {
        Tensor original = torch.randn(70, 130);
        Tensor a1 = torch.randn(1, 130);
        Tensor b1 = torch.randn(70, 1).mul(new Scalar(factor));
        Tensor a2 = torch.randn(4, 130).to(ScalarType.BFloat16);
        Tensor b2 = torch.randn(70, 4).mul(new Scalar(factor));
        List<LowRank> updates = List.of(new LowRank(a1, b1, 0.7), new LowRank(a2, b2, -1.3));
        Tensor delta = product(b1, a1, 0.7).add(product(b2, a2, -1.3));
        for (QuantizationOptions options : QuantizedLinearTest.options().toList()) {
            QuantizedWeight weight = options.quantize(original);
            Tensor stands = weight.dequantize(ScalarType.Double);
            Tensor merged = QuantizedMerge.dense(weight, updates, MergeBase.DEQUANTIZED, null, ScalarType.Float);
            close(merged.to(ScalarType.Double), stands.add(delta), 1e-6);
            Tensor onOriginal =
                    QuantizedMerge.dense(weight, updates, MergeBase.ORIGINAL, original, ScalarType.BFloat16);
            Tensor exact = original.to(ScalarType.Double).add(delta);
            close(onOriginal, exact.to(ScalarType.BFloat16), 0x1p-8);
            QuantizedWeight again = QuantizedMerge.requantized(weight, updates);
            assertThat(again.description()).isEqualTo(weight.description());
            assertThat(weight.dequantize(ScalarType.Double).equal(stands))
                    .as("not changed")
                    .isTrue();

            MergeReport report = QuantizedMerge.report(weight, updates, MergeBase.REQUANTIZED, original, again);
            Percentage within = Percentage.withPercentage(0.001);
            double size = delta.norm().item_double();
            double error = stands.sub(original).norm().item_double();
            Tensor change = again.dequantize(ScalarType.Double).sub(stands);
            double kept = change.mul(delta).sum().item_double() / (size * size);
            assertThat(report.deltaNorm()).isCloseTo(size, within);
            assertThat(report.quantizationError().getAsDouble()).isCloseTo(error, within);
            assertThat(report.errorToDelta().getAsDouble()).isCloseTo(error / size, within);
            assertThat(report.requantizationError().getAsDouble())
                    .isCloseTo(change.sub(delta).norm().item_double(), within);
            assertThat(report.deltaKept().getAsDouble()).isCloseTo(kept, within);
            assertThat(report.errorExceedsDelta()).as(report.toString()).isEqualTo(exceeds);
            assertThat(report.toString()).startsWith("REQUANTIZED: |delta| ").contains("% of delta kept");
        }
    }

    private static Tensor product(Tensor b, Tensor a, double scale) {
        return b.to(ScalarType.Double).matmul(a.to(ScalarType.Double)).mul(new Scalar(scale));
    }

    @Test
    void withoutTheOriginalItsErrorIsUnknownAndItCannotBeMergedInto() {
        QuantizedWeight weight = QuantizationOptions.nf4().quantize(torch.randn(5, 6));
        List<LowRank> updates = List.of(new LowRank(torch.randn(2, 6), torch.randn(5, 2), 1));
        MergeReport report = QuantizedMerge.report(weight, updates, MergeBase.DEQUANTIZED, null, null);
        assertThat(report.quantizationError()).isEmpty();
        assertThat(report.errorToDelta()).isEmpty();
        assertThat(report.errorExceedsDelta()).isFalse();
        assertThatThrownBy(() -> QuantizedMerge.dense(weight, updates, MergeBase.ORIGINAL, null, ScalarType.Float))
                .hasMessageContaining("ORIGINAL needs the weight that was quantized");
        assertThatThrownBy(() ->
                        QuantizedMerge.dense(weight, updates, MergeBase.ORIGINAL, torch.randn(6, 5), ScalarType.Float))
                .hasMessageContaining("the original is Float[6, 5] but must be (5, 6)");
        assertThatThrownBy(() -> QuantizedMerge.dense(weight, updates, MergeBase.REQUANTIZED, null, ScalarType.Float))
                .hasMessageContaining("call requantized");
        Tensor infinite = torch.full(new long[] {5, 2}, new Scalar(Double.POSITIVE_INFINITY));
        List<LowRank> broken = List.of(new LowRank(torch.randn(2, 6), infinite, 1));
        assertThatThrownBy(() -> QuantizedMerge.requantized(weight, broken))
                .isInstanceOf(ArithmeticException.class)
                .hasMessageContaining("an adapter seems broken");
    }
}
