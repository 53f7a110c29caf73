package org.lora4j.model;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.Stream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.MultiheadAttentionImpl;
import org.bytedeco.pytorch.MultiheadAttentionOptions;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.T_TensorTensor_T;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.config.BiasMode;
import org.lora4j.config.InitLoraWeights;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.PeftCompat;
import org.lora4j.layer.LoraMultiheadAttention;
import org.lora4j.layer.LoraWeights;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;

/** Multi-head attention with adapters, against LibTorch's attention with weights that have the updates in them. */
class AttentionTest {
    private static final int E = 6;
    private static final int HEADS = 3;
    private static final int L = 5;
    private static final int S = 4;
    private static final int BATCH = 3;

    /** What an attention may have. */
    enum Kind {
        PLAIN,
        NO_BIAS,
        BIAS_KV,
        ZERO_ATTENTION,
        DROPOUT
    }

    /** A model whose only layer is an attention. */
    static final class Net extends Module {
        MultiheadAttentionImpl attn;

        Net(Kind kind, ScalarType type) {
            MultiheadAttentionOptions options = new MultiheadAttentionOptions(E, HEADS);
            options.bias().put(kind != Kind.NO_BIAS);
            options.add_bias_kv().put(kind == Kind.BIAS_KV);
            options.add_zero_attn().put(kind == Kind.ZERO_ATTENTION);
            options.dropout().put(kind == Kind.DROPOUT ? 0.4 : 0);
            attn = register_module("attn", new MultiheadAttentionImpl(options));
            to(type, false);
            try (NoGradGuard guard = new NoGradGuard()) {
                Parameters.of(this).values().forEach(p -> torch.normal_(p, 0, 0.5));
            }
            train(kind == Kind.DROPOUT);
        }
    }

    /** The arguments of a pass. */
    private record Call(
            Tensor query, Tensor key, Tensor value, Tensor padding, boolean needWeights, Tensor mask, boolean average) {
        T_TensorTensor_T on(MultiheadAttentionImpl attention) {
            return attention.forward(query, key, value, padding, needWeights, mask, average);
        }
    }

    private static LoraConfig config(int r, double alpha) {
        return LoraConfig.builder()
                .r(r)
                .loraAlpha(alpha)
                .targetModules("attn")
                .initLoraWeights(InitLoraWeights.of(false))
                .build();
    }

    /** Passes with and without masks and weights. */
    private static List<Call> calls(ScalarType type) {
        Tensor q = torch.randn(new long[] {L, BATCH, E}).to(type);
        Tensor k = torch.randn(new long[] {S, BATCH, E}).to(type);
        Tensor v = torch.randn(new long[] {S, BATCH, E}).to(type);
        Tensor none = new Tensor();
        boolean[] hidden = new boolean[BATCH * S];
        hidden[3] = hidden[6] = hidden[7] = true;
        Tensor padding = Tensor.create(hidden, BATCH, S);
        Tensor flat = torch.randn(new long[] {L, S}).to(type);
        return List.of(
                new Call(q, k, v, none, true, none, true),
                new Call(q, q, q, none, false, none, true),
                new Call(q, k, v, none, true, flat, true),
                // LibTorch's attention knows no padding in bfloat16.
                new Call(q, k, v, type == ScalarType.BFloat16 ? none : padding, true, flat, false));
    }

    /** A model with the same base weights and the updates added: factor 1 for the inputs, {@code times} for the output. */
    private static Net reference(
            Kind kind, ScalarType type, Map<String, Tensor> base, List<Adapted> updates, int times) {
        Net net = new Net(kind, type);
        try (NoGradGuard guard = new NoGradGuard()) {
            Parameters.of(net).forEach((path, p) -> {
                Tensor value = base.get(path).to(ScalarType.Double);
                for (Adapted each : updates) {
                    if (path.equals("attn.in_proj_weight")) {
                        value = value.add(each.in());
                    } else if (path.equals("attn.out_proj.weight")) {
                        value = value.add(each.out(), new Scalar(times));
                    }
                }
                p.copy_(value);
            });
        }
        return net;
    }

    /** The updates of an adapter, in double precision. */
    private record Adapted(Tensor in, Tensor out) {
        static Adapted of(LoraModel<Net> model, String name) {
            return new Adapted(
                    product(model.adapter(name).weights().get("attn")),
                    product(model.adapter(name).weights().get("attn.out_proj")));
        }

        private static Tensor product(LoraWeights w) {
            return w.b().detach()
                    .to(ScalarType.Double)
                    .matmul(w.a().detach().to(ScalarType.Double))
                    .mul(new Scalar(w.scale()));
        }
    }

    private static Map<String, Tensor> copies(Module net) {
        Map<String, Tensor> copies = new LinkedHashMap<>();
        Parameters.of(net).forEach((path, p) -> copies.put(path, p.detach().clone()));
        return copies;
    }

    private static void same(T_TensorTensor_T actual, T_TensorTensor_T expected, double tolerance) {
        assertThat(GoldenCase.difference(actual.get0(), expected.get0()))
                .isLessThanOrEqualTo(tolerance * GoldenCase.largest(expected.get0()));
        assertThat(actual.get1().defined()).isEqualTo(expected.get1().defined());
        if (expected.get1().defined()) {
            assertThat(GoldenCase.difference(actual.get1(), expected.get1())).isLessThanOrEqualTo(tolerance);
        }
    }

    @ParameterizedTest
    @EnumSource(Kind.class)
    void forwardIsThatOfTheAdaptedWeights(Kind kind) {
        try (PointerScope scope = new PointerScope()) {
            torch.manual_seed(3);
            Net net = new Net(kind, ScalarType.Double);
            Map<String, Tensor> base = copies(net);
            MultiheadAttentionImpl original = net.attn;
            List<Call> calls = calls(ScalarType.Double);
            LoraModel<Net> model = Lora.wrap(net, config(1, 3), "one");
            model.addAdapter("two", config(4, 7));
            assertThat(net.attn).isInstanceOf(LoraMultiheadAttention.class);
            Adapted one = Adapted.of(model, "one");
            Adapted two = Adapted.of(model, "two");
            model.setActive("one", "two");
            Net both = reference(kind, ScalarType.Double, base, List.of(one, two), 1);
            Net bare = reference(kind, ScalarType.Double, base, List.of(), 1);
            for (Call call : calls) {
                torch.manual_seed(9);
                T_TensorTensor_T actual = call.on(net.attn);
                torch.manual_seed(9);
                same(actual, call.on(both.attn), 1e-12);
                try (LoraModel.Scope off = model.disabled()) {
                    torch.manual_seed(9);
                    T_TensorTensor_T without = call.on(net.attn);
                    torch.manual_seed(9);
                    same(without, call.on(bare.attn), 0);
                    assertThat(GoldenCase.difference(without.get0(), actual.get0()))
                            .isGreaterThan(0.1);
                }
            }
            Call call = calls.get(0);
            torch.manual_seed(9);
            T_TensorTensor_T actual = net.attn.forward(call.query(), call.key(), call.value());
            torch.manual_seed(9);
            same(actual, both.attn.forward(call.query(), call.key(), call.value()), 1e-12);

            model.unload();
            assertThat(net.attn).isSameAs(original);
        }
    }

    @ParameterizedTest
    @EnumSource(Kind.class)
    void mergedTheWeightsAreTheAdapted(Kind kind) {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            torch.manual_seed(13);
            Net net = new Net(kind, ScalarType.Float);
            Map<String, Tensor> base = copies(net);
            LoraModel<Net> model = Lora.wrap(net, config(1, 3), "one");
            model.addAdapter("two", config(4, 7));
            model.setActive("one", "two");
            Net both = reference(
                    kind, ScalarType.Float, base, List.of(Adapted.of(model, "one"), Adapted.of(model, "two")), 1);
            Call call = calls(ScalarType.Float).get(3);
            for (String merged : new String[] {"two", "one"}) {
                model.mergeAdapter(merged);
                torch.manual_seed(9);
                T_TensorTensor_T actual = call.on(net.attn);
                torch.manual_seed(9);
                same(actual, call.on(both.attn), 1e-5);
            }
            Parameters.of(net)
                    .forEach((path, p) -> assertThat(
                                    GoldenCase.difference(p, Parameters.of(both).get(path)))
                            .as(path)
                            .isLessThan(1e-6));
            model.unmergeAdapter();
            Parameters.of(net)
                    .forEach((path, p) ->
                            assertThat(p.equal(base.get(path))).as(path).isTrue());
        }
    }

    @Test
    void gradientsAreThoseOfTheWeights() {
        try (PointerScope scope = new PointerScope()) {
            torch.manual_seed(4);
            Net net = new Net(Kind.PLAIN, ScalarType.Double);
            Map<String, Tensor> base = copies(net);
            Call call = calls(ScalarType.Double).get(3);
            LoraModel<Net> model = Lora.wrap(net, config(2, 5), "a");
            Net reference = reference(Kind.PLAIN, ScalarType.Double, base, List.of(Adapted.of(model, "a")), 1);
            Tensor weight = torch.randn(new long[] {L, BATCH, E}).to(ScalarType.Double);
            call.on(net.attn).get0().mul(weight).sum().backward();
            call.on(reference.attn).get0().mul(weight).sum().backward();
            Map<String, String> parameters =
                    Map.of("attn", "attn.in_proj_weight", "attn.out_proj", "attn.out_proj.weight");
            parameters.forEach((layer, path) -> {
                LoraWeights w = model.adapter("a").weights().get(layer);
                Tensor dw = Parameters.of(reference).get(path).grad();
                Scalar s = new Scalar(w.scale());
                close(w.b().grad(), dw.matmul(w.a().t()).mul(s));
                close(w.a().grad(), w.b().t().matmul(dw).mul(s));
                assertThat(Parameters.of(net).get(path).grad().defined()).isFalse();
            });
        }
    }

    private static void close(Tensor actual, Tensor expected) {
        assertThat(GoldenCase.difference(actual, expected)).isLessThanOrEqualTo(1e-12 * GoldenCase.largest(expected));
    }

    @Test
    void aPassOfMixedRowsIsThatOfEachRow() {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            torch.manual_seed(5);
            Net net = new Net(Kind.BIAS_KV, ScalarType.Float);
            LoraModel<Net> model = Lora.wrap(net, config(1, 3), "one");
            model.addAdapter("two", config(4, 7));
            String[] rows = {"two", LoraModel.BASE, "one"};
            for (Call call : calls(ScalarType.Float)) {
                T_TensorTensor_T mixed;
                try (LoraModel.Scope each = model.rows(rows)) {
                    mixed = call.on(net.attn);
                }
                for (int row = 0; row < BATCH; row++) {
                    model.setActive(rows[row].equals(LoraModel.BASE) ? new String[0] : new String[] {rows[row]});
                    T_TensorTensor_T alone = call.on(net.attn);
                    assertThat(GoldenCase.difference(
                                    mixed.get0().select(1, row), alone.get0().select(1, row)))
                            .isLessThan(1e-5);
                    assertThat(mixed.get1().defined()).isEqualTo(call.needWeights());
                    if (call.needWeights()) {
                        assertThat(GoldenCase.difference(
                                        mixed.get1().select(0, row),
                                        alone.get1().select(0, row)))
                                .isLessThan(1e-6);
                    }
                }
            }
            try (LoraModel.Scope each = model.rows("one", "two")) {
                assertThatThrownBy(() -> calls(ScalarType.Float).get(0).on(net.attn))
                        .hasMessageContaining("batch of 3 rows");
            }
        }
    }

    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void theOutputCountsTwiceOnRequest(boolean roundedTwice) {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            torch.manual_seed(6);
            Net net = new Net(Kind.PLAIN, ScalarType.Float);
            Map<String, Tensor> base = copies(net);
            Set<PeftCompat> compat = roundedTwice
                    ? Set.of(PeftCompat.ATTENTION_OUTPUT_TWICE, PeftCompat.MERGE_ROUNDS_TWICE)
                    : Set.of(PeftCompat.ATTENTION_OUTPUT_TWICE);
            LoraModel<Net> model = Lora.wrap(net, config(2, 3), "a", compat);
            Net twice = reference(Kind.PLAIN, ScalarType.Float, base, List.of(Adapted.of(model, "a")), 2);
            Call call = calls(ScalarType.Float).get(0);
            same(call.on(net.attn), call.on(twice.attn), 1e-5);
            model.mergeAdapter();
            same(call.on(net.attn), call.on(twice.attn), 1e-5);
            model.unmergeAdapter();
            Parameters.of(net)
                    .forEach((path, p) ->
                            assertThat(p.equal(base.get(path))).as(path).isTrue());
        }
    }

    @Test
    void halfWeightsAreRoundedOnce() {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            torch.manual_seed(7);
            Net net = new Net(Kind.PLAIN, ScalarType.BFloat16);
            Map<String, Tensor> base = copies(net);
            LoraModel<Net> model = Lora.wrap(net, config(3, 5), "a");
            Net reference = reference(Kind.PLAIN, ScalarType.BFloat16, base, List.of(Adapted.of(model, "a")), 1);
            for (Call call : calls(ScalarType.BFloat16)) {
                T_TensorTensor_T unmerged = call.on(net.attn);
                assertThat(unmerged.get0().scalar_type().intern()).isEqualTo(ScalarType.BFloat16);
                same(unmerged, call.on(reference.attn), 0.02);
                model.mergeAdapter();
                same(call.on(net.attn), unmerged, 0.02);
                model.unmergeAdapter();
            }
        }
    }

    @ParameterizedTest
    @EnumSource(
            value = Kind.class,
            names = {"PLAIN", "NO_BIAS"})
    void biasesOfTheAdapterAreAdded(Kind kind) {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            torch.manual_seed(8);
            Net net = new Net(kind, ScalarType.Float);
            Map<String, Tensor> base = copies(net);
            LoraConfig config =
                    config(2, 3).toBuilder().otherField("lora_bias", true).build();
            LoraModel<Net> model = Lora.wrap(net, config, "a");
            Net reference =
                    reference(Kind.PLAIN, ScalarType.Float, withBiases(base), List.of(Adapted.of(model, "a")), 1);
            Parameters.of(reference).forEach((path, p) -> {
                if (path.endsWith("bias")) {
                    LoraWeights w = model.adapter("a").weights().get(path.contains("out") ? "attn.out_proj" : "attn");
                    p.add_(w.bias(), new Scalar(w.scale()));
                }
            });
            Call call = calls(ScalarType.Float).get(0);
            same(call.on(net.attn), call.on(reference.attn), 1e-5);
            if (kind == Kind.NO_BIAS) {
                assertThatThrownBy(model::mergeAdapter).hasMessageContaining("has a bias on B");
            } else {
                model.mergeAdapter();
                same(call.on(net.attn), call.on(reference.attn), 1e-5);
                model.unmergeAdapter();
            }
            Parameters.of(net)
                    .forEach((path, p) ->
                            assertThat(p.equal(base.get(path))).as(path).isTrue());
        }
    }

    private static Map<String, Tensor> withBiases(Map<String, Tensor> base) {
        Map<String, Tensor> all = new LinkedHashMap<>(base);
        all.putIfAbsent("attn.in_proj_bias", torch.zeros(3 * E));
        all.putIfAbsent("attn.out_proj.bias", torch.zeros(E));
        return all;
    }

    static Stream<BiasMode> modes() {
        return Stream.of(BiasMode.NONE, BiasMode.LORA_ONLY, BiasMode.ALL);
    }

    @ParameterizedTest
    @MethodSource("modes")
    void filesHavePeftsKeys(BiasMode bias, @TempDir Path folder) throws IOException {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            torch.manual_seed(10);
            Net net = new Net(Kind.PLAIN, ScalarType.Float);
            Map<String, Tensor> base = copies(net);
            // The rank and scale of the output projection are those of the attention.
            LoraConfig config = config(2, 3).toBuilder()
                    .bias(bias)
                    .rankPattern(Map.of("attn", 3))
                    .alphaPattern(Map.of("out_proj", 100.0))
                    .build();
            LoraModel<Net> model = Lora.wrap(net, config, "a");
            assertThat(model.adapter("a").weights().get("attn.out_proj").rank()).isEqualTo(3);
            assertThat(model.adapter("a").weights().get("attn.out_proj").scale())
                    .isEqualTo(1);
            model.save(folder, "a");
            List<String> keys = new java.util.ArrayList<>(List.of(
                    "base_model.model.attn.base_layer.out_proj.lora_A.weight",
                    "base_model.model.attn.base_layer.out_proj.lora_B.weight",
                    "base_model.model.attn.lora_A.weight",
                    "base_model.model.attn.lora_B.weight"));
            if (bias != BiasMode.NONE) {
                // PEFT's "all" means parameters whose last name is bias, so not in_proj_bias.
                keys.add("base_model.model.attn.base_layer.out_proj.base_layer.bias");
            }
            try (MappedTensors tensors = TensorFiles.open(folder.resolve("adapter_model.safetensors"))) {
                assertThat(tensors.names()).containsExactlyInAnyOrderElementsOf(keys);
            }
            Call call = calls(ScalarType.Float).get(0);
            T_TensorTensor_T expected = call.on(net.attn);
            Net again = reference(Kind.PLAIN, ScalarType.Float, base, List.of(), 1);
            Lora.load(again, folder, "b");
            same(call.on(again.attn), expected, 0);
        }
    }

    @Test
    void aSumIsASum(@TempDir Path folder) throws IOException {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            Net net = new Net(Kind.PLAIN, ScalarType.Float);
            Map<String, Tensor> base = copies(net);
            LoraModel<Net> model = Lora.wrap(net, config(2, 3), "a");
            model.addAdapter("b", config(1, 2));
            model.addWeightedAdapter(List.of("a", "b"), List.of(0.5, 2.0), "sum");
            model.setActive("a", "b");
            model.adapter("a").setScale(0.5);
            model.adapter("b").setScale(2);
            Call call = calls(ScalarType.Float).get(0);
            T_TensorTensor_T both = call.on(net.attn);
            model.setActive("sum");
            same(call.on(net.attn), both, 1e-5);
            model.save(folder, "sum");
            Net again = reference(Kind.PLAIN, ScalarType.Float, base, List.of(), 1);
            Lora.load(again, folder, "sum");
            same(call.on(again.attn), both, 1e-5);
        }
    }

    /** As {@link Net}, with keys and values of other widths. */
    static final class Wide extends Module {
        MultiheadAttentionImpl attn;

        Wide() {
            MultiheadAttentionOptions options = new MultiheadAttentionOptions(E, HEADS);
            options.kdim().put(4);
            options.vdim().put(7);
            attn = register_module("attn", new MultiheadAttentionImpl(options));
        }
    }

    @Test
    void whatCannotBeIsSaid() {
        try (PointerScope scope = new PointerScope()) {
            Wide wide = new Wide();
            assertThatThrownBy(() -> Lora.wrap(wide, config(2, 3), "a"))
                    .hasMessageContaining("'attn'")
                    .hasMessageContaining("kdim 4 and vdim 7");
            assertThat(wide.attn.getClass()).isEqualTo(MultiheadAttentionImpl.class);
            Map.of("use_dora", (Object) true, "alora_invocation_tokens", List.of(1, 2))
                    .forEach((field, value) -> {
                        Net net = new Net(Kind.PLAIN, ScalarType.Float);
                        LoraConfig config = config(2, 3).toBuilder()
                                .initLoraWeights(InitLoraWeights.of(true))
                                .otherField(field, value)
                                .build();
                        assertThatThrownBy(() -> Lora.wrap(net, config, "a"))
                                .isInstanceOf(IllegalArgumentException.class)
                                .hasMessageContaining(field)
                                .hasMessageContaining("'attn'");
                        assertThat(net.attn.getClass()).isEqualTo(MultiheadAttentionImpl.class);
                    });
            LoraConfig part = config(2, 3).toBuilder().targetModules("out_proj").build();
            assertThatThrownBy(() -> Lora.wrap(new Net(Kind.PLAIN, ScalarType.Float), part, "a"))
                    .hasMessageContaining("'attn.out_proj'")
                    .hasMessageContaining("name the attention");
        }
    }
}
