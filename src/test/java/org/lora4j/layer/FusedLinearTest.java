package org.lora4j.layer;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.LinearOptions;
import org.bytedeco.pytorch.Module;
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
import org.lora4j.config.LoraConfig;
import org.lora4j.layer.TrainingPath.Kind;
import org.lora4j.ops.LibTorch;
import org.lora4j.ops.Tensors;

/** The fused path against plain autograd on the same layer with the same random numbers. */
class FusedLinearTest {
    private PointerScope scope;

    @BeforeEach
    void open() {
        LibTorch.load();
        scope = new PointerScope();
        torch.manual_seed(11);
        LivePasses.release();
    }

    @AfterEach
    void close() {
        scope.close();
        LivePasses.release();
        assertThat(LivePasses.count()).as("passes that hold activations").isZero();
    }

    /** What one case varies. */
    record Case(
            String name,
            int in,
            int out,
            int[] ranks,
            long[] shape,
            ScalarType type,
            ScalarType factors,
            double dropout,
            boolean bias,
            boolean loraBias,
            boolean dora,
            boolean quantized,
            String[] rows) {
        @Override
        public String toString() {
            return name;
        }
    }

    static Stream<Case> cases() {
        ScalarType f = ScalarType.Float;
        ScalarType b = ScalarType.BFloat16;
        ScalarType d = ScalarType.Double;
        List<Case> cases = new ArrayList<>();
        cases.add(new Case("plain", 13, 7, i(3), l(2, 5, 13), f, f, 0, true, false, false, false, null));
        cases.add(new Case("no bias", 13, 7, i(3), l(2, 5, 13), f, f, 0, false, false, false, false, null));
        cases.add(new Case("rank 1, a matrix", 9, 17, i(1), l(6, 9), f, f, 0, true, false, false, false, null));
        cases.add(new Case("one vector", 9, 17, i(2), l(9), f, f, 0, true, false, false, false, null));
        cases.add(new Case("one output", 33, 1, i(5), l(4, 33), f, f, 0, true, false, false, false, null));
        cases.add(new Case("float64", 13, 7, i(3), l(2, 5, 13), d, d, 0, true, false, false, false, null));
        cases.add(new Case("dropout", 64, 24, i(4), l(3, 40, 64), f, f, 0.3, true, false, false, false, null));
        cases.add(new Case(
                "tiles with dropout", 4099, 8, i(2), l(300, 4099), f, f, 0.1, false, false, false, false, null));
        cases.add(new Case("dropout of all", 8, 6, i(2), l(5, 8), f, f, 1, true, false, false, false, null));
        cases.add(new Case("bias on B", 13, 7, i(3), l(2, 5, 13), f, f, 0.2, true, true, false, false, null));
        cases.add(
                new Case("three adapters", 13, 7, i(3, 1, 6), l(2, 5, 13), f, f, 0.2, true, true, false, false, null));
        cases.add(new Case("DoRA", 13, 7, i(3), l(2, 5, 13), f, f, 0, true, false, true, false, null));
        cases.add(new Case("DoRA, no bias", 13, 7, i(3), l(2, 5, 13), f, f, 0, false, false, true, false, null));
        cases.add(new Case("bf16", 40, 24, i(4), l(3, 50, 40), b, b, 0, true, false, false, false, null));
        cases.add(new Case("mixed", 40, 24, i(4), l(3, 50, 40), b, f, 0, true, false, false, false, null));
        cases.add(new Case("mixed, all", 40, 24, i(4, 2), l(3, 50, 40), b, f, 0.2, true, true, false, false, null));
        cases.add(new Case("mixed, DoRA", 40, 24, i(4), l(3, 50, 40), b, f, 0, true, false, true, false, null));
        cases.add(new Case("bf16 factors", 40, 24, i(4), l(3, 50, 40), f, b, 0.1, true, false, false, false, null));
        cases.add(new Case("NF4", 64, 24, i(4), l(3, 40, 64), f, f, 0.1, true, false, false, true, null));
        cases.add(
                new Case("NF4, bf16, no bias", 64, 24, i(4, 3), l(3, 40, 64), b, f, 0, false, true, false, true, null));
        String[] rows = {"a1", "a0", "a0", "__base__", "a1"};
        cases.add(new Case("rows", 13, 7, i(3, 2), l(5, 4, 13), f, f, 0, true, true, false, false, rows));
        String[] sorted = {"a1", "a1", "__base__", "a0", "a0"};
        cases.add(new Case(
                "sorted rows, dropout", 13, 7, i(3, 2), l(5, 4, 13), b, f, 0.3, true, false, false, false, sorted));
        return cases.stream();
    }

    private static int[] i(int... values) {
        return values;
    }

    private static long[] l(long... values) {
        return values;
    }

    /** A layer with adapters a0, a1, ... whose scales differ and whose B is not zero. */
    private static final class Bench {
        final ActiveAdapters active = new ActiveAdapters();
        final LoraLinear layer;
        final List<LoraWeights> adapters = new ArrayList<>();
        final Tensor x;
        final Tensor weights;

        Bench(Case test) {
            LinearOptions options = new LinearOptions(test.in, test.out);
            options.bias().put(test.bias);
            LinearImpl base = new LinearImpl(options);
            base.to(test.type, false);
            base.parameters().get(0).set_requires_grad(false);
            if (test.bias) {
                base.parameters().get(1).set_requires_grad(false);
            }
            if (test.quantized) {
                base = QuantizedLinear.of(base, QuantizationOptions.nf4());
            }
            base.train(true);
            layer = new LoraLinear(base, "here", active);
            List<String> names = new ArrayList<>();
            for (int i = 0; i < test.ranks.length; i++) {
                LoraConfig config = LoraConfig.builder()
                        .r(test.ranks[i])
                        .loraAlpha(3 + i)
                        .loraDropout(test.dropout)
                        .loraBias(test.loraBias)
                        .useDora(test.dora)
                        .targetModules("here")
                        .build();
                Map<LoraWeights.Part, Tensor> parts = new java.util.EnumMap<>(LoraWeights.Part.class);
                for (LoraWeights.Part part : LoraWeights.Part.of(config)) {
                    Tensor value = torch.randn(layer.shape(part, test.ranks[i])).mul(new Scalar(0.5));
                    parts.put(part, value.to(test.factors).detach());
                }
                LoraWeights added = new LoraWeights(config, "here", parts);
                added.requiresGrad(true);
                adapters.add(added);
                layer.adapters().add("a" + i, added);
                names.add("a" + i);
            }
            active.names(names);
            if (test.rows != null) {
                active.rows(new RowAdapters(List.of(test.rows)));
            }
            x = torch.randn(test.shape).to(test.type).detach();
            x.set_requires_grad(true);
            long[] shape = test.shape.clone();
            shape[shape.length - 1] = test.out;
            weights = torch.randn(shape).to(test.type);
        }

        /** Output, gradient of x, then those of all parts of all adapters, after passes that accumulate. */
        List<Tensor> run(FusedMode mode, int passes) {
            active.fused(mode);
            List<Tensor> results = new ArrayList<>();
            x.mutable_grad().reset();
            adapters.forEach(each ->
                    each.parts().values().forEach(part -> part.mutable_grad().reset()));
            torch.manual_seed(5);
            Tensor y = null;
            for (int i = 0; i < passes; i++) {
                y = layer.forward(x);
                y.mul(weights).sum().backward();
            }
            results.add(y.detach());
            results.add(x.grad());
            adapters.forEach(each -> each.parts().values().forEach(part -> {
                assertThat(part.grad().defined()).isTrue();
                results.add(part.grad().clone());
            }));
            return results;
        }
    }

    @ParameterizedTest
    @MethodSource("cases")
    void equalsAutograd(Case test) {
        Bench bench = new Bench(test);
        List<Tensor> expected = bench.run(FusedMode.OFF, 1);
        List<Tensor> fused = bench.run(FusedMode.REQUIRED, 1);
        assertThat(bench.layer.adapters().trainingPath().kind()).isEqualTo(Kind.FUSED);
        compare(test, expected, fused);
        // Accumulation: the second pass adds to the gradients of the first.
        compare(test, bench.run(FusedMode.OFF, 3), bench.run(FusedMode.REQUIRED, 3));
    }

    /**
     * The bound: sums of up to k products are off by at most k unit roundoffs of what is summed, and a result by a few of
     * its own type. The magnitude of what is summed is bounded by that of the largest value times a factor for cancellation.
     */
    private static void compare(Case test, List<Tensor> expected, List<Tensor> actual) {
        assertThat(actual).hasSameSizeAs(expected);
        double unit = Math.max(unit(test.type), unit(test.factors));
        for (int i = 0; i < expected.size(); i++) {
            assertThat(Tensors.describe(actual.get(i))).isEqualTo(Tensors.describe(expected.get(i)));
            double largest = expected.get(i).to(ScalarType.Double).abs().max().item_double();
            double difference = expected.get(i)
                    .to(ScalarType.Double)
                    .sub(actual.get(i).to(ScalarType.Double))
                    .abs()
                    .max()
                    .item_double();
            assertThat(difference)
                    .as("%s, result %d of size %s", test, i, largest)
                    .isLessThanOrEqualTo(8 * unit * largest);
        }
    }

    private static double unit(ScalarType type) {
        return switch (type) {
            case BFloat16 -> 0x1p-8;
            case Double -> 0x1p-50;
            default -> 0x1p-21;
        };
    }

    private static Case plain() {
        return cases().findFirst().orElseThrow();
    }

    @Test
    void trainsTheFactorsAloneWhereTheInputNeedsNoGradient() {
        Bench bench = new Bench(plain());
        List<Tensor> expected = bench.run(FusedMode.OFF, 1);
        bench.x.set_requires_grad(false);
        List<Tensor> alone = bench.run(FusedMode.REQUIRED, 1);
        assertThat(bench.layer.adapters().trainingPath().kind()).isEqualTo(Kind.FACTORS_ONLY);
        for (int i = 2; i < expected.size(); i++) {
            assertThat(alone.get(i).equal(expected.get(i))).isTrue();
        }
    }

    @Test
    void givesNoGradientToFrozenFactors() {
        Bench bench = new Bench(plain());
        Tensor expected = bench.run(FusedMode.OFF, 1).get(1);
        bench.adapters.get(0).requiresGrad(false);
        bench.active.fused(FusedMode.REQUIRED);
        bench.x.mutable_grad().reset();
        bench.adapters.get(0).a().mutable_grad().reset();
        bench.layer.forward(bench.x).mul(bench.weights).sum().backward();
        assertThat(bench.adapters.get(0).a().grad().defined()).isFalse();
        assertThat(bench.x.grad().sub(expected).abs().max().item_double()).isLessThan(1e-5);
    }

    @Test
    void runsTwiceWhereTheGraphIsRetained() {
        Bench bench = new Bench(plain());
        List<Tensor> once = bench.run(FusedMode.REQUIRED, 1);
        bench.run(FusedMode.REQUIRED, 0 + 1);
        bench.x.mutable_grad().reset();
        LoraWeights adapter = bench.adapters.get(0);
        adapter.a().mutable_grad().reset();
        Tensor loss = bench.layer.forward(bench.x).mul(bench.weights).sum();
        loss.backward(new Tensor(), new org.bytedeco.pytorch.BoolOptional(true), false, noInputs());
        assertThat(adapter.a().grad().equal(once.get(2))).isTrue();
        loss.backward();
        assertThat(adapter.a().grad().equal(once.get(2).mul(new Scalar(2)))).isTrue();
        assertThatThrownBy(loss::backward).hasMessageContaining("backward through the graph a second time");
    }

    private static org.bytedeco.pytorch.TensorArrayRefOptional noInputs() {
        return new org.bytedeco.pytorch.TensorArrayRefOptional();
    }

    @Test
    void refusesSecondDerivatives() {
        Bench bench = new Bench(plain());
        bench.active.fused(FusedMode.REQUIRED);
        Tensor loss = bench.layer.forward(bench.x).mul(bench.weights).sum();
        assertThatThrownBy(() ->
                        loss.backward(new Tensor(), new org.bytedeco.pytorch.BoolOptional(true), true, noInputs()))
                .hasMessageContaining("'here'")
                .hasMessageContaining("no second derivatives");
    }

    @Test
    void refusesFactorsChangedBetweenThePasses() {
        Bench bench = new Bench(plain());
        bench.active.fused(FusedMode.REQUIRED);
        Tensor loss = bench.layer.forward(bench.x).mul(bench.weights).sum();
        try (NoGradGuard noGrad = new NoGradGuard()) {
            bench.adapters.get(0).b().mul_(new Scalar(2));
        }
        assertThatThrownBy(loss::backward)
                .hasMessageContaining("factor B of layer 'here' was changed in place between");
    }

    @Test
    void aGraphDroppedWithoutABackwardPassFreesItsActivations() {
        Bench bench = new Bench(plain());
        bench.active.fused(FusedMode.REQUIRED);
        try (PointerScope pass = new PointerScope()) {
            bench.layer.forward(bench.x);
            assertThat(LivePasses.count()).isEqualTo(1);
            LivePasses.release();
            assertThat(LivePasses.count()).as("while the graph lives").isEqualTo(1);
        }
        LivePasses.release();
        assertThat(LivePasses.count()).isZero();
    }

    @Test
    void saysWhyALayerFallsBackOrFails() {
        Case dora = new Case(
                "", 13, 7, i(3), l(5, 13), ScalarType.Float, ScalarType.Float, 0.1, true, false, true, false, null);
        Bench bench = new Bench(dora);
        bench.run(FusedMode.AUTO, 1);
        assertThat(bench.layer.adapters().trainingPath())
                .isEqualTo(new TrainingPath("here", Kind.AUTOGRAD, "DoRA with dropout"));
        assertThatThrownBy(() -> bench.run(FusedMode.REQUIRED, 1))
                .hasMessage(
                        "layer 'here' cannot train on the fused path: DoRA with dropout. Change that, leave the layer out"
                                + " of targetModules, or use FusedMode.AUTO");
        Bench trained = new Bench(plain());
        ((Module) trained.layer.original()).parameters().get(0).set_requires_grad(true);
        trained.run(FusedMode.AUTO, 1);
        assertThat(trained.layer.adapters().trainingPath().reason()).isEqualTo("its base weight trains");
    }

    @Test
    void ignoresWhatIsNotContiguous() {
        Bench bench = new Bench(plain());
        Tensor turned = torch.randn(13, 5, 2).set_requires_grad(true);
        List<Tensor> outputs = new ArrayList<>();
        for (FusedMode mode : List.of(FusedMode.OFF, FusedMode.REQUIRED)) {
            bench.active.fused(mode);
            turned.mutable_grad().reset();
            Tensor y = bench.layer.forward(turned.permute(2, 1, 0));
            y.mul(bench.weights).sum().backward();
            outputs.add(y.detach());
            outputs.add(turned.grad().clone());
        }
        assertThat(outputs.get(0).sub(outputs.get(2)).abs().max().item_double()).isLessThan(1e-5);
        assertThat(outputs.get(1).sub(outputs.get(3)).abs().max().item_double()).isLessThan(1e-5);
    }
}
