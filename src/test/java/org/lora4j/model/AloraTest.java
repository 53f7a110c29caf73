package org.lora4j.model;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.GradMode;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.lora4j.config.InitLoraWeights;
import org.lora4j.config.LoraConfig;
import org.lora4j.model.causal.CausalLM;
import org.lora4j.model.causal.GenerationOptions;
import org.lora4j.model.causal.KvCache;

/** Activated LoRA: an adapter that starts at its invocation tokens. The outputs of PEFT are in GoldenAdaptersTest. */
class AloraTest {
    private static final List<Integer> TOKENS = List.of(3, 5);
    private static final List<Integer> OTHER = List.of(7);

    /** Rows in which (3, 5) starts at 4, at 0, at 2 and again at 5, nowhere, and is cut off; 7 is at 6, nowhere, 0, 3, nowhere. */
    private static final long[] IDS = {
        1, 2, 3, 9, 3, 5, 7, //
        3, 5, 1, 1, 1, 1, 1, //
        7, 9, 3, 5, 3, 3, 5, //
        5, 3, 3, 7, 4, 4, 4, //
        1, 5, 1, 2, 2, 2, 3
    };

    private static final int ROWS = 5;
    private static final int WIDTH = 7;
    private static final int[] STARTS = {4, 0, 5, 7, 7};
    private static final int[] OTHER_STARTS = {6, 7, 0, 3, 7};

    private static LoraConfig config(int r, List<Integer> tokens, String... targets) {
        LoraConfig config = LoraConfig.builder()
                .r(r)
                .loraAlpha(7)
                .targetModules(targets)
                .initLoraWeights(InitLoraWeights.of(false))
                .build();
        return tokens == null
                ? config
                : config.toBuilder()
                        .otherField("alora_invocation_tokens", tokens)
                        .build();
    }

    private static Tensor ids() {
        return Tensor.create(IDS, ROWS, WIDTH);
    }

    /** One layer over (5, 7, 10) with the activated adapters "a" and "b" and a plain one. */
    private static LoraModel<Toys.Mlp> layer(ScalarType type) {
        torch.manual_seed(11);
        Toys.Mlp net = new Toys.Mlp();
        net.to(type, false);
        LoraModel<Toys.Mlp> model = Lora.wrap(net, config(3, TOKENS, "lin0"), "a");
        model.addAdapter(
                "b",
                config(1, OTHER, "lin0").toBuilder()
                        .otherField("lora_bias", true)
                        .build());
        model.addAdapter("plain", config(2, null, "lin0"));
        return model;
    }

    /** The output with only the named adapter, applied everywhere. */
    private static Tensor everywhere(LoraModel<Toys.Mlp> model, String adapter, Tensor x) {
        model.setActive(adapter);
        long[] each = new long[ROWS * WIDTH];
        List<Integer> tokens = model.adapter(adapter).config().invocationTokens();
        for (int i = 0; i < each.length; i++) {
            each[i] = i % WIDTH < tokens.size() ? tokens.get(i % WIDTH) : 0;
        }
        try (LoraModel.Scope all = model.invocation(Tensor.create(each, ROWS, WIDTH))) {
            return model.base().lin0.forward(x);
        }
    }

    private static Tensor base(LoraModel<Toys.Mlp> model, Tensor x) {
        try (LoraModel.Scope off = model.disabled()) {
            return model.base().lin0.forward(x);
        }
    }

    private static Tensor from(int[] starts) {
        boolean[] mask = new boolean[ROWS * WIDTH];
        for (int i = 0; i < mask.length; i++) {
            mask[i] = i % WIDTH >= starts[i / WIDTH];
        }
        return Tensor.create(mask, ROWS, WIDTH, 1);
    }

    static Stream<Arguments> types() {
        return Stream.of(
                Arguments.of(ScalarType.Float, false, 1e-5),
                Arguments.of(ScalarType.Float, true, 1e-5),
                Arguments.of(ScalarType.Double, false, 1e-12),
                Arguments.of(ScalarType.BFloat16, false, 2e-2),
                Arguments.of(ScalarType.BFloat16, true, 2e-2));
    }

    @ParameterizedTest
    @MethodSource("types")
    void adaptersApplyFromTheLastInvocationOn(ScalarType type, boolean gradients, double tolerance) {
        try (PointerScope scope = new PointerScope()) {
            LoraModel<Toys.Mlp> model = layer(type);
            Tensor x = torch.randn(new long[] {ROWS, WIDTH, 10}).to(type);
            // Not contiguous, as after a transposition.
            Tensor y = x.transpose(0, 1).contiguous().transpose(0, 1);
            GradMode.set_enabled(gradients);
            Tensor base = base(model, x);
            Tensor a = everywhere(model, "a", x);
            Tensor b = everywhere(model, "b", x);
            Tensor plain = everywhere(model, "plain", x);
            assertThat(GoldenCase.difference(a, base)).isGreaterThan(0.1);
            Tensor onlyA = torch.where(from(STARTS), a, base);
            Tensor onlyB = torch.where(from(OTHER_STARTS), b, base);
            model.setActive("a");
            try (LoraModel.Scope where = model.invocation(ids())) {
                for (Tensor input : List.of(x, y)) {
                    Tensor out = model.base().lin0.forward(input);
                    close(out, onlyA, tolerance);
                    assertThat(GoldenCase.difference(
                                    out.select(0, 3), base(model, input).select(0, 3)))
                            .as("without the tokens, the base bit for bit")
                            .isZero();
                }
                model.setActive("plain", "a", "b");
                Tensor all = onlyA.add(onlyB).add(plain).sub(base).sub(base);
                close(model.base().lin0.forward(y), all, 4 * tolerance);
                String[] rows = {"a", LoraModel.BASE, "b", "plain", "a"};
                try (LoraModel.Scope mixed = model.rows(rows)) {
                    Tensor out = model.base().lin0.forward(x);
                    close(out.select(0, 0), onlyA.select(0, 0), tolerance);
                    assertThat(GoldenCase.difference(out.select(0, 1), base.select(0, 1)))
                            .isZero();
                    close(out.select(0, 2), onlyB.select(0, 2), tolerance);
                    close(out.select(0, 3), plain.select(0, 3), tolerance);
                    assertThat(GoldenCase.difference(out.select(0, 4), base.select(0, 4)))
                            .isZero();
                }
                // One more token of each row.
                model.setActive("a");
                Tensor last = x.select(1, 0);
                Tensor reached = torch.where(from(STARTS).any(1, false), a.select(1, 0), base.select(1, 0));
                close(model.base().lin0.forward(last), reached, tolerance);
                close(model.base().lin0.forward(last.unsqueeze(1)).select(1, 0), reached, tolerance);
            }
        } finally {
            GradMode.set_enabled(true);
        }
    }

    private static void close(Tensor actual, Tensor expected, double tolerance) {
        assertThat(GoldenCase.difference(actual, expected))
                .isLessThanOrEqualTo(tolerance * GoldenCase.largest(expected));
    }

    @Test
    void gradientsComeFromTheReachedTokensAlone() {
        try (PointerScope scope = new PointerScope()) {
            LoraModel<Toys.Mlp> model = layer(ScalarType.Double);
            model.setActive("a");
            Tensor x = torch.randn(new long[] {ROWS, WIDTH, 10}).to(ScalarType.Double);
            Tensor weight = torch.randn(new long[] {ROWS, WIDTH, 20}).to(ScalarType.Double);
            var factors = model.adapter("a").weights().get("lin0");
            try (LoraModel.Scope where = model.invocation(ids())) {
                model.base().lin0.forward(x).mul(weight).sum().backward();
            }
            Tensor masked = weight.mul(from(STARTS).to(ScalarType.Double)).reshape(-1, 20);
            Tensor inner = x.reshape(-1, 10).matmul(factors.a().t());
            Tensor expected = masked.t().matmul(inner).mul(new org.bytedeco.pytorch.Scalar(factors.scale()));
            close(factors.b().grad(), expected, 1e-12);

            // No row has the tokens: no update, and still gradients, which are zero.
            factors.b().grad().zero_();
            try (LoraModel.Scope where = model.invocation(ids().fill_(new org.bytedeco.pytorch.Scalar(-1L)))) {
                model.base().lin0.forward(x).sum().backward();
            }
            assertThat(GoldenCase.largest(factors.b().grad())).isZero();
        }
    }

    private static LoraModel<CausalLM> language(String... targets) throws IOException {
        CausalLM base = (CausalLM) GoldenCase.base("models/llama", "llama", ScalarType.Float);
        torch.manual_seed(5);
        return Lora.wrap(base, config(2, TOKENS, targets), "a");
    }

    @ParameterizedTest
    @CsvSource({"q_proj", "v_proj", "lm_head"})
    void aCacheGoesOnFromTheInvocation(String target) throws IOException {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            LoraModel<CausalLM> model = language(target);
            Tensor ids = ids();
            Tensor whole = model.base().forward(ids);
            for (int prefill : new int[] {1, 4, 6}) {
                KvCache cache = model.base().newCache(2);
                Tensor first = model.base().forward(ids.narrow(1, 0, prefill), null, cache);
                Tensor rest = model.base().forward(ids.narrow(1, prefill, WIDTH - prefill), null, cache);
                // Row 1 is invoked at its start and goes on; the invocation of row 2 at 5 is cut by a prefill of 6.
                for (int row : new int[] {1, 3, 4}) {
                    if (prefill > 1 || row != 1) {
                        close(first.select(0, row), whole.select(0, row).narrow(0, 0, prefill), 1e-5);
                        close(rest.select(0, row), whole.select(0, row).narrow(0, prefill, WIDTH - prefill), 1e-5);
                    }
                }
            }

            // A cache the base has filled serves the adapter: what comes before the invocation is the base.
            KvCache cache = model.base().newCache(WIDTH);
            Tensor row = ids.narrow(0, 0, 1);
            model.setActive();
            model.base().forward(row.narrow(1, 0, 4), null, cache);
            model.setActive("a");
            Tensor invoked = model.base().forward(row.narrow(1, 4, 2), null, cache);
            close(invoked, whole.narrow(0, 0, 1).narrow(1, 4, 2), 1e-5);
            Tensor next = model.base().forward(row.narrow(1, 6, 1), null, cache);
            close(next, whole.narrow(0, 0, 1).narrow(1, 6, 1), 1e-5);
        }
    }

    @Test
    void generationFollowsThePrompts() throws IOException {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            LoraModel<CausalLM> model = language("q_proj", "v_proj", "down_proj");
            long[][] prompts = {{1, 2, 3, 5, 8}, {3, 5}, {2, 9, 4, 4, 1, 1, 3, 5, 6}, {1, 5, 3}};
            GenerationOptions options = GenerationOptions.greedy(9);
            long[][] together = model.base().generate(prompts, options);
            for (int i = 0; i < prompts.length; i++) {
                assertThat(model.base().generate(new long[][] {prompts[i]}, options)[0])
                        .isEqualTo(together[i]);
                // By hand: the whole sequence again for each token, which starts where the prompt does.
                long[] sequence = prompts[i];
                for (long token : together[i]) {
                    Tensor ids = Tensor.create(sequence, 1, sequence.length);
                    Tensor logits = model.base().forward(ids).select(1, sequence.length - 1);
                    assertThat(logits.argmax().item_long()).isEqualTo(token);
                    sequence = java.util.Arrays.copyOf(sequence, sequence.length + 1);
                    sequence[sequence.length - 1] = token;
                }
            }
            model.setActive();
            long[][] base = model.base().generate(prompts, options);
            assertThat(base[3]).isEqualTo(together[3]);
            assertThat(java.util.Arrays.deepEquals(base, together)).isFalse();
        }
    }

    @Test
    void aLossStartsAtTheSameTokensAsTheLogits() throws IOException {
        try (PointerScope scope = new PointerScope()) {
            LoraModel<CausalLM> model = language("q_proj", "lm_head");
            Tensor loss = model.base().loss(ids(), ids());
            Tensor logits = model.base().forward(ids()).narrow(1, 0, WIDTH - 1);
            Tensor expected = torch.cross_entropy_loss(
                    logits.reshape(-1, logits.size(2)),
                    ids().narrow(1, 1, WIDTH - 1).reshape(-1));
            assertThat(loss.item_double()).isCloseTo(expected.item_double(), org.assertj.core.data.Offset.offset(1e-6));
        }
    }

    @Test
    void whatCannotBeIsSaid() {
        try (PointerScope scope = new PointerScope()) {
            LoraModel<Toys.Mlp> model = layer(ScalarType.Float);
            Tensor x = torch.randn(new long[] {ROWS, WIDTH, 10});
            assertThatThrownBy(() -> model.base().lin0.forward(x))
                    .isInstanceOf(IllegalStateException.class)
                    .hasMessageContaining("lin0")
                    .hasMessageContaining("[3, 5]")
                    .hasMessageContaining("invocation(inputIds)");
            try (LoraModel.Scope where = model.invocation(ids())) {
                assertThatThrownBy(() -> model.base().lin0.forward(x.narrow(0, 0, 2)))
                        .hasMessageContaining("5 rows");
                assertThatThrownBy(() -> model.base().lin0.forward(x.unsqueeze(0)))
                        .hasMessageContaining("[B, T, out]");
                model.addAdapter("late", config(2, List.of(1, 2, 3), "lin0"));
                model.setActive("late");
                assertThatThrownBy(() -> model.base().lin0.forward(x)).hasMessageContaining("anew");
            }
            assertThatThrownBy(() -> model.invocation(torch.randn(3, 4))).hasMessageContaining("Long[B, T]");
            Map<String, Tensor> before = new java.util.HashMap<>();
            Parameters.of(model.base())
                    .forEach((path, p) -> before.put(path, p.detach().clone()));
            for (Runnable merge : List.<Runnable>of(() -> model.mergeAdapter("plain", "a"), model::mergeAndUnload)) {
                assertThatThrownBy(merge::run)
                        .isInstanceOf(IllegalStateException.class)
                        .hasMessageContaining("cannot merge")
                        .hasMessageContaining("invocation tokens");
                assertThat(model.mergedAdapters()).isEmpty();
                Parameters.of(model.base())
                        .forEach((path, p) ->
                                assertThat(p.equal(before.get(path))).isTrue());
            }
            assertThatThrownBy(() -> model.addWeightedAdapter(List.of("a", "plain"), List.of(1.0, 1.0), "sum"))
                    .hasMessageContaining("\"a\"")
                    .hasMessageContaining("invocation tokens");
            Module conv = Toys.of("conv2d");
            assertThatThrownBy(() -> Lora.wrap(conv, config(2, TOKENS, "conv2d"), "a"))
                    .hasMessageContaining("'conv2d' is a lora.Conv2d");
            assertThatThrownBy(() -> Lora.wrap(Toys.of("embconv"), config(2, TOKENS, "emb"), "a"))
                    .hasMessageContaining("lora.Embedding");
        }
    }
}
