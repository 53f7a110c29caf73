package org.lora4j.model;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.Objects;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.LinearOptions;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.LoraConfigBuilder;
import org.lora4j.layer.LoraWeights;
import org.lora4j.ops.LibTorch;

/** DoRA and the bias on B against the formulas, where no file of PEFT says it: caches, gradients, dropout, errors. */
class DoraTest {
    static {
        LibTorch.load();
    }

    /** One linear layer. */
    static final class One extends Module {
        LinearImpl lin;

        One(long in, long out, boolean bias) {
            LinearOptions options = new LinearOptions(in, out);
            options.bias().put(bias);
            lin = register_module("lin", new LinearImpl(options));
        }

        Tensor forward(Tensor x) {
            return lin.forward(x);
        }
    }

    private static LoraConfigBuilder config(int r) {
        return LoraConfig.builder()
                .r(r)
                .loraAlpha(2 * r + 1)
                .targetModules("lin")
                .initLoraWeights(false);
    }

    private static LoraWeights weights(LoraModel<One> model) {
        return Objects.requireNonNull(model.adapter("a").weights().get("lin"));
    }

    /** (m / n) (W + s B A) x + b, written as the paper does, with n a constant. */
    private static Tensor formula(One net, LoraWeights w, Tensor x) {
        Tensor adapted = net.lin.weight().detach().add(w.b().matmul(w.a()), new Scalar(w.scale()));
        Tensor norms = adapted.detach().mul(adapted.detach()).sum(1).sqrt();
        Tensor rescale = Objects.requireNonNull(w.magnitude()).div(norms).unsqueeze(1);
        Tensor y = torch.linear(x, adapted.mul(rescale));
        return net.lin.bias().defined() ? y.add(net.lin.bias().detach()) : y;
    }

    @ParameterizedTest
    @CsvSource({"7,5,1,true", "12,9,3,false", "33,65,8,true", "3,2,5,true"})
    void outputsAndGradientsAreThoseOfTheFormula(long in, long out, int r, boolean bias) {
        try (PointerScope scope = new PointerScope()) {
            torch.manual_seed(in);
            One net = new One(in, out, bias);
            LoraModel<One> model = Lora.wrap(net, config(r).useDora(true).build(), "a");
            LoraWeights w = weights(model);
            try (NoGradGuard guard = new NoGradGuard()) {
                w.magnitude().mul_(torch.rand_like(w.magnitude()).add(new Scalar(0.5)));
            }
            Tensor x = torch.randn(4, 3, in);
            Tensor direction = torch.randn(4, 3, out);
            Tensor ours = net.forward(x);
            ours.mul(direction).sum().backward();
            Tensor[] gradients = {
                w.a().grad().clone(), w.b().grad().clone(), w.magnitude().grad().clone()
            };
            for (Tensor part : new Tensor[] {w.a(), w.b(), w.magnitude()}) {
                part.grad().zero_();
            }
            Tensor wanted = formula(net, w, x);
            wanted.mul(direction).sum().backward();
            near(ours, wanted);
            near(gradients[0], w.a().grad());
            near(gradients[1], w.b().grad());
            near(gradients[2], w.magnitude().grad());
        }
    }

    @Test
    void normsFollowWhatAnOptimizerChangesInPlace() {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            torch.manual_seed(3);
            One net = new One(11, 6, true);
            LoraModel<One> model = Lora.wrap(net, config(2).useDora(true).build(), "a");
            LoraWeights w = weights(model);
            Tensor x = torch.randn(5, 11);
            near(net.forward(x), formula(net, w, x));
            w.b().add_(torch.randn_like(w.b()));
            near(net.forward(x), formula(net, w, x));
            w.a().mul_(new Scalar(1.5));
            near(net.forward(x), formula(net, w, x));
            model.adapter("a").setScale(0.3);
            near(net.forward(x), formula(net, w, x));
            net.lin.weight().add_(torch.randn_like(net.lin.weight()));
            near(net.forward(x), formula(net, w, x));
        }
    }

    @Test
    void aFreshAdapterChangesNothingAndDropoutKeepsTheMean() {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            torch.manual_seed(4);
            One net = new One(40, 7, true);
            Tensor x = torch.randn(3, 40);
            Tensor base = net.forward(x).clone();
            LoraConfig config = LoraConfig.builder()
                    .r(5)
                    .targetModules("lin")
                    .loraDropout(0.25)
                    .useDora(true)
                    .build();
            LoraModel<One> model = Lora.wrap(net, config, "a");
            near(net.forward(x), base);
            LoraWeights w = weights(model);
            w.magnitude().mul_(new Scalar(1.7));
            w.b().add_(torch.randn_like(w.b()).mul(new Scalar(0.1)));
            net.eval();
            near(net.forward(x), formula(net, w, x));
            net.train(true);
            // The mean over many masks is the output without dropout: dropout scales what it keeps.
            Tensor many = net.forward(x.unsqueeze(0).expand(20000, 3, 40));
            Tensor spread = many.std(new long[] {0}, true, false).div(new Scalar(Math.sqrt(20000)));
            Tensor error = many.mean(new long[] {0}).sub(formula(net, w, x)).abs();
            assertThat(spread.min().item_double()).isGreaterThan(1e-4);
            assertThat(error.div(spread).max().item_double()).isLessThan(5);
        }
    }

    @Test
    void rowsOfABatchMayUseDoraAndPlainAdapters() {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            torch.manual_seed(5);
            One net = new One(9, 4, true);
            LoraModel<One> model = Lora.wrap(net, config(3).useDora(true).build(), "a");
            model.addAdapter("b", config(2).build());
            model.addAdapter("c", config(1).loraBias(true).build());
            weights(model).magnitude().mul_(new Scalar(0.4));
            Tensor x = torch.randn(6, 2, 9);
            Tensor[] alone = new Tensor[4];
            String[] names = {"a", "b", "c", LoraModel.BASE};
            for (int i = 0; i < 4; i++) {
                model.setActive(i == 3 ? new String[0] : new String[] {names[i]});
                alone[i] = net.forward(x).clone();
            }
            try (LoraModel.Scope rows = model.rows("b", "a", LoraModel.BASE, "c", "a", "b")) {
                Tensor mixed = net.forward(x);
                int[] expected = {1, 0, 3, 2, 0, 1};
                for (int i = 0; i < 6; i++) {
                    near(mixed.get(i), alone[expected[i]].get(i));
                }
            }
            try (LoraModel.Scope rows = model.rows()) {
                assertThat(net.forward(torch.randn(0, 2, 9)).numel()).isZero();
            }
        }
    }

    @Test
    void mergedInAnyOrderWithOthersTheOutputStays() {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            torch.manual_seed(6);
            One net = new One(9, 4, true);
            LoraModel<One> model = Lora.wrap(net, config(3).useDora(true).build(), "a");
            model.addAdapter("b", config(2).loraBias(true).build());
            weights(model).magnitude().mul_(new Scalar(0.4));
            Tensor x = torch.randn(6, 9);
            Tensor weight = net.lin.weight().clone();
            Tensor bias = net.lin.bias().clone();
            for (String[] order : new String[][] {{"a"}, {"b"}, {"a", "b"}, {"b", "a"}}) {
                model.setActive(order);
                Tensor output = net.forward(x).clone();
                model.mergeAdapter();
                near(net.forward(x), output);
                model.unmergeAdapter();
                assertThat(net.lin.weight().equal(weight)).isTrue();
                assertThat(net.lin.bias().equal(bias)).isTrue();
            }
            model.setActive("b", "a");
            Tensor output = net.forward(x).clone();
            model.mergeAdapter("b");
            near(net.forward(x), output);
            model.setActive("a", "b");
            near(model.mergeAndUnload().forward(x), net.forward(x));
        }
    }

    @Test
    void aBiasWithoutABaseBiasIsNotMergedAndChangesNothing() {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            torch.manual_seed(7);
            One net = new One(5, 3, false);
            LoraModel<One> model = Lora.wrap(net, config(2).loraBias(true).build(), "a");
            Tensor x = torch.randn(2, 5);
            LoraWeights w = weights(model);
            Tensor wanted = torch.linear(x, net.lin.weight())
                    .add(w.b().matmul(w.a()).matmul(x.t()).t().add(w.bias()), new Scalar(w.scale()));
            near(net.forward(x), wanted);
            Tensor before = net.lin.weight().clone();
            assertThatThrownBy(model::mergeAdapter)
                    .isInstanceOf(IllegalStateException.class)
                    .hasMessageContaining("layer 'lin'")
                    .hasMessageContaining("bias");
            assertThat(net.lin.weight().equal(before)).isTrue();
        }
    }

    private static void near(Tensor actual, Tensor expected) {
        assertThat(GoldenCase.difference(actual, expected))
                .isLessThanOrEqualTo(1e-5 * Math.max(1, GoldenCase.largest(expected)));
    }
}
