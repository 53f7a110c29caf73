package org.lora4j.model;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.LongOptional;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.config.LoraConfig;
import org.lora4j.layer.LoraWeights;
import org.lora4j.ops.LibTorch;

/** The scale of a live adapter, and the initialisation whose product is zero. */
class ScaleTest {
    static {
        LibTorch.load();
    }

    @Test
    void aChangedScaleCountsInEveryPathAndIsUndone() {
        try (PointerScope scope = new PointerScope()) {
            torch.manual_seed(5);
            Toys.Mlp net = new Toys.Mlp();
            // One linear map, so that the change of the output is the scale times a constant.
            LoraConfig config = LoraConfig.builder()
                    .r(3)
                    .loraAlpha(7)
                    .targetModules("lin1")
                    .initLoraWeights(false)
                    .build();
            Tensor x = torch.randn(4, 10);
            Tensor base = net.forward(x).detach().clone();
            LoraModel<Toys.Mlp> model = Lora.wrap(net, config, "a");
            Tensor delta = net.forward(x).detach().sub(base);
            assertThat(GoldenCase.largest(delta)).isGreaterThan(0.01);
            LoraWeights weights = model.adapter("a").weights().get("lin1");

            model.adapter("a").setScale(0.5);
            model.adapter("a").multiplyScale(-3);
            assertThat(weights.scale()).isEqualTo(7.0 / 3 * 0.5 * -3);
            near(net.forward(x), base, delta, -1.5);
            try (NoGradGuard guard = new NoGradGuard()) {
                near(net.forward(x), base, delta, -1.5);
                model.mergeAdapter();
                near(net.forward(x), base, delta, -1.5);
                model.unmergeAdapter();
                try (LoraModel.Scope rows = model.rows("a", LoraModel.BASE, "a", "a")) {
                    Tensor mixed = net.forward(x);
                    near(
                            mixed.slice(0, of(2), of(4), 1),
                            base.slice(0, of(2), of(4), 1),
                            delta.slice(0, of(2), of(4), 1),
                            -1.5);
                    assertThat(mixed.get(1).equal(base.get(1))).isTrue();
                }
            }
            model.adapter("a").multiplyScale(1 / -3.0);
            assertThat(weights.scale()).isCloseTo(7.0 / 3 * 0.5, within(1e-12));
            model.adapter("a").setScale(1);
            assertThat(weights.scale()).isEqualTo(7.0 / 3);
            near(net.forward(x), base, delta, 1);
            assertThatThrownBy(() -> model.adapter("a").setScale(Double.NaN))
                    .hasMessageContaining("scale factor NaN of adapter \"a\"");
            assertThatThrownBy(() -> model.adapter("a").multiplyScale(Double.POSITIVE_INFINITY))
                    .hasMessageContaining("scale factor Infinity");
            assertThat(weights.scale()).isEqualTo(7.0 / 3);
        }
    }

    private static LongOptional of(long value) {
        return new LongOptional(value);
    }

    private static void near(Tensor actual, Tensor base, Tensor delta, double factor) {
        Tensor expected = base.add(delta, new Scalar(factor));
        assertThat(GoldenCase.difference(actual, expected))
                .isLessThanOrEqualTo(2e-5 * Math.max(1, GoldenCase.largest(expected)));
    }

    @ParameterizedTest
    @ValueSource(ints = {2, 6, 10})
    void anOrthogonalStartIsRandomAndChangesNothing(int rank) {
        try (PointerScope scope = new PointerScope()) {
            torch.manual_seed(rank);
            Toys.Mlp net = new Toys.Mlp();
            LoraConfig config = LoraConfig.builder()
                    .r(rank)
                    .loraAlpha(3)
                    .targetModules("lin0")
                    .initLoraWeights("orthogonal")
                    .build();
            Tensor x = torch.randn(4, 10);
            Tensor base = net.forward(x).detach().clone();
            LoraModel<Toys.Mlp> model = Lora.wrap(net, config, "a");
            LoraWeights weights = model.adapter("a").weights().get("lin0");
            // Each of A and B is a normal matrix times half of an orthogonal one, over 10: mean square 1 / 200.
            for (Tensor factor : new Tensor[] {weights.a(), weights.b()}) {
                double meanSquare = factor.detach().square().mean().item_double();
                assertThat(meanSquare).isBetween(0.001, 0.02);
            }
            assertThat(GoldenCase.largest(weights.b().matmul(weights.a()))).isLessThan(1e-7);
            assertThat(GoldenCase.difference(net.forward(x), base)).isLessThan(1e-5);
            assertThat(model.trainableParameters()).hasSize(2).allMatch(Tensor::requires_grad);
        }
    }

    @Test
    void anOrthogonalStartNeedsAnEvenRankAndALinearLayer() {
        try (PointerScope scope = new PointerScope()) {
            LoraConfig odd = LoraConfig.builder()
                    .r(3)
                    .targetModules("lin0")
                    .initLoraWeights("orthogonal")
                    .build();
            assertThatThrownBy(() -> Lora.wrap(new Toys.Mlp(), odd, "a"))
                    .hasMessageContaining("an even rank")
                    .hasMessageContaining("'lin0' is a lora.Linear with rank 3");
            LoraConfig embedding = LoraConfig.builder()
                    .r(4)
                    .targetModules("emb")
                    .initLoraWeights("orthogonal")
                    .build();
            assertThatThrownBy(() -> Lora.wrap(new Toys.EmbConv(), embedding, "a"))
                    .hasMessageContaining("'emb' is a lora.Embedding with rank 4");
        }
    }
}
