package org.lora4j.layer;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.List;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.stream.Stream;
import org.assertj.core.data.Offset;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.LinearOptions;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.lora4j.ops.LibTorch;
import org.lora4j.ops.QuantizedWeight;
import org.lora4j.ops.Tensors;

class QuantizedLinearTest {
    private PointerScope scope;

    @BeforeEach
    void open() {
        LibTorch.load();
        torch.manual_seed(5);
        scope = new PointerScope();
    }

    @AfterEach
    void close() {
        scope.close();
    }

    static LinearImpl linear(long in, long out, boolean bias) {
        LinearOptions options = new LinearOptions(in, out);
        options.bias().put(bias);
        return new LinearImpl(options);
    }

    static Stream<QuantizationOptions> options() {
        return Stream.of(
                QuantizationOptions.nf4(),
                QuantizationOptions.nf4().withBlockSize(32).withDoubleQuant(false),
                new QuantizationOptions(QuantizationOptions.Kind.FP4, 128, true, null),
                QuantizationOptions.int8());
    }

    static void backward(Tensor y, Tensor gradient) {
        y.mul(gradient).sum().backward();
    }

    /** Within a part of the largest element. */
    static void close(Tensor actual, Tensor expected, double tolerance) {
        assertThat(Tensors.describe(actual)).isEqualTo(Tensors.describe(expected));
        double difference = actual.to(ScalarType.Double)
                .sub(expected.to(ScalarType.Double))
                .abs()
                .max()
                .item_double();
        double size = expected.to(ScalarType.Double).abs().max().item_double();
        assertThat(difference).isLessThanOrEqualTo(tolerance * size);
    }

    @ParameterizedTest
    @MethodSource("options")
    void forwardAndBackwardAreThoseOfTheDequantizedLayer(QuantizationOptions options) {
        for (boolean bias : new boolean[] {true, false}) {
            for (ScalarType type : new ScalarType[] {ScalarType.Float, ScalarType.BFloat16, ScalarType.Double}) {
                LinearImpl plain = linear(17, 5, bias);
                if (bias) {
                    plain.bias().set_requires_grad(false);
                }
                Tensor original = plain.weight().detach().clone();
                QuantizedLinear layer = QuantizedLinear.of(plain, options);
                Tensor dense = layer.dequantized(type).clone();
                double tolerance = type == ScalarType.BFloat16 ? 0x1p-7 : type == ScalarType.Float ? 1e-6 : 1e-12;
                for (long[] shape : new long[][] {{17}, {3, 17}, {2, 4, 17}, {0, 17}}) {
                    Tensor x = torch.randn(shape).to(type);
                    Tensor x2 = x.clone();
                    x.requires_grad_(true);
                    x2.requires_grad_(true);
                    Tensor y = layer.forward(x);
                    Tensor expected =
                            bias ? torch.linear(x2, dense, plain.bias().to(type)) : torch.linear(x2, dense);
                    Tensor dy = torch.randn(Tensors.shape(y)).to(type);
                    backward(y, dy);
                    backward(expected, dy);
                    if (x.numel() > 0) {
                        close(y.detach(), expected.detach(), tolerance);
                        close(x.grad(), x2.grad(), tolerance);
                    } else {
                        assertThat(Tensors.describe(y)).isEqualTo(Tensors.describe(expected));
                        assertThat(Tensors.describe(x.grad())).isEqualTo(Tensors.describe(x));
                    }
                    try (NoGradGuard noGrad = new NoGradGuard()) {
                        assertThat(layer.forward(x).equal(y))
                                .as("without gradients")
                                .isTrue();
                        assertThat(layer.forward(x).requires_grad()).isFalse();
                    }
                }
                double error = layer.dequantized(ScalarType.Double)
                        .sub(original)
                        .norm()
                        .item_double();
                assertThat(layer.quantizationError(original)).isCloseTo(error, Offset.offset(1e-9));
                layer.close();
            }
        }
    }

    @Test
    void theWeightIsPackedAndFrozenAndTheSizesStay() {
        LinearImpl plain = linear(64, 10, true);
        QuantizedLinear layer = QuantizedLinear.of(plain, QuantizationOptions.nf4());
        assertThat(Tensors.describe(layer.weight())).isEqualTo("Byte[320, 1]");
        assertThat(Tensors.describe(plain.named_parameters().get("weight"))).isEqualTo("Byte[320, 1]");
        assertThat(layer.weight().requires_grad()).isFalse();
        assertThat(layer.inFeatures()).isEqualTo(64);
        assertThat(layer.outFeatures()).isEqualTo(10);
        assertThat(layer.options().in_features().get()).isEqualTo(64);
        assertThat(layer.bytes()).isEqualTo(320 + 10 + 4 + 256 * 4 + 10 * 4);
        assertThat(layer.quantized().packed().data_ptr().address())
                .isEqualTo(layer.weight().data_ptr().address());
        layer.close();
    }

    @Test
    void aBiasThatIsTrainedGetsItsGradient() {
        for (boolean recordsInput : new boolean[] {true, false}) {
            LinearImpl plain = linear(9, 4, true);
            QuantizedLinear layer = QuantizedLinear.of(plain, QuantizationOptions.nf4());
            Tensor x = torch.randn(6, 9);
            x.requires_grad_(recordsInput);
            Tensor y = layer.forward(x);
            Tensor dense = layer.dequantized(ScalarType.Float);
            close(y.detach(), torch.linear(x.detach(), dense, plain.bias().detach()), 1e-6);
            Tensor dy = torch.randn(6, 4);
            backward(y, dy);
            close(plain.bias().grad(), dy.sum(0), 1e-6);
            assertThat(x.grad().defined()).isEqualTo(recordsInput);
            layer.close();
        }
    }

    @Test
    void gradientsMeetWhereAnInputIsUsedTwiceAndPassThroughChains() {
        QuantizedLinear up = QuantizedLinear.of(linear(7, 12, false), QuantizationOptions.nf4());
        QuantizedLinear gate = QuantizedLinear.of(linear(7, 12, false), QuantizationOptions.int8());
        QuantizedLinear down = QuantizedLinear.of(linear(12, 7, false), QuantizationOptions.nf4());
        Tensor x = torch.randn(5, 7);
        Tensor x2 = x.clone();
        x.requires_grad_(true);
        x2.requires_grad_(true);
        Tensor y =
                down.forward(up.forward(x).mul(torch.sigmoid(gate.forward(x)))).add(x);
        Tensor gated = torch.sigmoid(torch.linear(x2, gate.dequantized(ScalarType.Float)));
        Tensor inner = torch.linear(x2, up.dequantized(ScalarType.Float)).mul(gated);
        Tensor expected =
                torch.linear(inner, down.dequantized(ScalarType.Float)).add(x2);
        backward(y, y.detach());
        backward(expected, expected.detach());
        close(y.detach(), expected.detach(), 1e-5);
        close(x.grad(), x2.grad(), 1e-5);
        List.of(up, gate, down).forEach(QuantizedLinear::close);
    }

    @Test
    void noPassKeepsADenseWeight() {
        // A graph that kept the weights of 64 passes would hold 256 MiB; the Java heap may grow by some meanwhile.
        QuantizedLinear layer = QuantizedLinear.of(linear(1024, 1024, false), QuantizationOptions.nf4());
        Tensor x = torch.randn(2, 1024);
        x.requires_grad_(true);
        Tensor y = x;
        long before = 0;
        for (int i = 0; i < 80; i++) {
            if (i == 16) {
                before = Pointer.physicalBytes();
            }
            y = layer.forward(y);
        }
        assertThat(Pointer.physicalBytes() - before).as("bytes").isLessThan(128L << 20);
        y.sum().backward();
        assertThat(x.grad().defined()).isTrue();
        layer.close();
    }

    @Test
    void theComputeTypeIsUsedAndTheOutputHasTheInputsType() {
        LinearImpl plain = linear(33, 6, true);
        QuantizedLinear layer =
                QuantizedLinear.of(plain, QuantizationOptions.nf4().withComputeType(ScalarType.BFloat16));
        assertThat(layer.computeType()).isEqualTo(ScalarType.BFloat16);
        Tensor x = torch.randn(4, 33);
        x.requires_grad_(true);
        Tensor y = layer.forward(x);
        Tensor bias = plain.bias().detach().to(ScalarType.BFloat16);
        Tensor expected =
                torch.linear(x.detach().to(ScalarType.BFloat16), layer.dequantized(ScalarType.BFloat16), bias);
        close(y.detach(), expected.to(ScalarType.Float), 0x1p-7);
        assertThat(y.to(ScalarType.BFloat16).to(ScalarType.Float).equal(y)).isTrue();
        y.sum().backward();
        close(x.grad(), layer.dequantized(ScalarType.Float).sum(0).expand(4, 33), 0x1p-6);
        layer.close();
    }

    @Test
    void threadsMayShareALayer() throws Exception {
        QuantizedLinear layer = QuantizedLinear.of(linear(40, 30, false), QuantizationOptions.nf4());
        Tensor x = torch.randn(3, 40);
        Tensor expected = layer.forward(x).detach();
        Tensor gradient = layer.dequantized(ScalarType.Float).sum(0);
        ExecutorService threads = Executors.newFixedThreadPool(3);
        try {
            List<Future<Boolean>> results = Stream.generate(() -> threads.submit(() -> {
                        try (PointerScope own = new PointerScope()) {
                            Tensor input = x.clone();
                            input.requires_grad_(true);
                            Tensor y = layer.forward(input);
                            y.sum().backward();
                            Tensor difference =
                                    input.grad().select(0, 1).sub(gradient).abs();
                            return y.detach().equal(expected)
                                    && difference.max().item_double() < 1e-5;
                        }
                    }))
                    .limit(30)
                    .toList();
            for (Future<Boolean> result : results) {
                assertThat(result.get()).isTrue();
            }
        } finally {
            threads.shutdown();
        }
        layer.close();
    }

    @Test
    void mistakesAreNamed() {
        LinearImpl plain = linear(8, 4, true);
        QuantizedLinear layer = QuantizedLinear.of(plain, QuantizationOptions.nf4());
        assertThatThrownBy(() -> QuantizedLinear.of(layer, QuantizationOptions.nf4()))
                .hasMessageContaining("quantized already");
        LoraLinear adapted = new LoraLinear(linear(8, 4, true), "a.b", new ActiveAdapters());
        assertThatThrownBy(() -> QuantizedLinear.of(adapted, QuantizationOptions.nf4()))
                .hasMessageContaining("layer 'a.b' has adapters");
        QuantizedWeight other = QuantizationOptions.nf4().quantize(torch.randn(8, 4));
        assertThatThrownBy(() -> QuantizedLinear.of(linear(8, 4, true), other, null))
                .hasMessageContaining("the quantized weight is (8, 4), but the layer takes 8 features and puts out 4");
        assertThatThrownBy(() -> layer.exchange(other)).hasMessageContaining("not (8, 4) in nf4");
        assertThatThrownBy(() -> layer.exchange(QuantizationOptions.int8().quantize(torch.randn(4, 8))))
                .hasMessageContaining("int8");
        assertThatThrownBy(() -> layer.forward(torch.randn(2, 9)))
                .hasMessageContaining("the input is Float[2, 9], but the layer takes (..., 8)");
        assertThatThrownBy(() -> layer.quantizationError(torch.randn(8, 4))).hasMessageContaining("must be (4, 8)");
        assertThatThrownBy(() -> layer.toLinear(torch.randn(8, 4))).hasMessageContaining("must be (4, 8)");
        assertThatThrownBy(() -> QuantizationOptions.nf4().withBlockSize(100)).hasMessageContaining("blockSize is 100");
        assertThatThrownBy(() -> QuantizationOptions.nf4().withComputeType(ScalarType.Int))
                .hasMessageContaining("computeType is Int");
        layer.to(ScalarType.BFloat16, false);
        assertThatThrownBy(() -> layer.forward(torch.randn(2, 8)))
                .isInstanceOf(IllegalStateException.class)
                .hasMessageContaining("the packed weight has become BFloat16[16, 1] from Byte[16, 1]");
        layer.close();
    }

    @Test
    void aWeightThatIsNotFiniteLeavesTheLayerAsItIs() {
        LinearImpl plain = linear(8, 4, true);
        plain.weight().detach().select(0, 1).fill_(new Scalar(Double.NaN));
        assertThatThrownBy(() -> QuantizedLinear.of(plain, QuantizationOptions.nf4()))
                .isInstanceOf(ArithmeticException.class);
        assertThat(Tensors.describe(plain.weight())).isEqualTo("Float[4, 8]");
        assertThat(plain.weight().requires_grad()).isTrue();
    }

    @Test
    void backwardAfterTheLayerIsClosedIsAnError() {
        QuantizedLinear layer = QuantizedLinear.of(linear(8, 4, true), QuantizationOptions.nf4());
        Tensor x = torch.randn(2, 8);
        x.requires_grad_(true);
        Tensor y = layer.forward(x).sum();
        layer.close();
        assertThatThrownBy(y::backward).hasMessageContaining("backward through a quantized layer that is closed");
    }

    @Test
    void anotherWeightCanBePutInAndTheOldOneBack() {
        QuantizedLinear layer = QuantizedLinear.of(linear(8, 4, true), QuantizationOptions.nf4());
        Tensor x = torch.randn(3, 8);
        Tensor first = layer.forward(x).detach();
        QuantizedWeight old;
        try (PointerScope inner = new PointerScope()) {
            old = layer.exchange(layer.quantized().requantize(torch.randn(4, 8)));
        }
        Tensor second = layer.forward(x).detach();
        assertThat(second.equal(first)).isFalse();
        close(
                second,
                torch.linear(
                        x, layer.dequantized(ScalarType.Float), layer.bias().detach()),
                1e-6);
        layer.exchange(old).close();
        assertThat(layer.forward(x).equal(first)).isTrue();
        layer.close();
    }

    @Test
    void aFullWeightCanBePutBack() {
        QuantizedLinear layer = QuantizedLinear.of(linear(8, 4, true), QuantizationOptions.nf4());
        Tensor x = torch.randn(3, 8);
        Tensor before = layer.forward(x).detach();
        LinearImpl plain = layer.toLinear(layer.dequantized(ScalarType.Float));
        layer.close();
        assertThat(Tensors.describe(plain.weight())).isEqualTo("Float[4, 8]");
        close(plain.forward(x).detach(), before, 1e-6);
    }
}
