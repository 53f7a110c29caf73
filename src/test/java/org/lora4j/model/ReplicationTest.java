package org.lora4j.model;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Supplier;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.config.InitLoraWeights;
import org.lora4j.config.LoraConfig;
import org.lora4j.model.causal.CausalLM;
import org.lora4j.model.causal.GenerationOptions;
import org.lora4j.model.causal.KvCache;
import org.lora4j.ops.Tensors;

/**
 * Layers repeated for an adapter, against a checkpoint in which they are written out. The outputs of PEFT are in
 * GoldenAdaptersTest.
 */
class ReplicationTest {
    private static final List<List<Integer>> RANGES = List.of(List.of(0, 2), List.of(1, 3), List.of(0, 1));
    private static final List<Integer> SOURCES = List.of(0, 1, 1, 2, 0);

    private static LoraConfig config(List<List<Integer>> ranges) {
        return LoraConfig.builder()
                .r(3)
                .loraAlpha(4)
                .targetModules("q_proj", "down_proj")
                .initLoraWeights(InitLoraWeights.of(false))
                .layerReplication(ranges)
                .build();
    }

    private static CausalLM base(String name) throws IOException {
        return (CausalLM) GoldenCase.base("models/" + name, name, ScalarType.Float);
    }

    private static Tensor ids() {
        return Tensor.create(new long[] {1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8}, 2, 8);
    }

    private static Map<String, Tensor> copies(Module model) {
        Map<String, Tensor> copies = new LinkedHashMap<>();
        Parameters.of(model).forEach((path, p) -> copies.put(path, p.detach().clone()));
        return copies;
    }

    private static void close(Tensor actual, Tensor expected) {
        assertThat(GoldenCase.difference(actual, expected)).isLessThanOrEqualTo(1e-5 * GoldenCase.largest(expected));
    }

    /** Gives an adapter the factors of another. */
    private static void copyFactors(LoraModel<?> from, LoraModel<?> to) {
        from.adapter("a")
                .weights()
                .forEach((path, weights) -> weights.parts()
                        .forEach((part, value) -> to.adapter("a")
                                .weights()
                                .get(path)
                                .parts()
                                .get(part)
                                .copy_(value)));
    }

    @ParameterizedTest
    @ValueSource(strings = {"llama", "qwen2_window"})
    void theStackIsThatOfALargerModel(String name, @TempDir Path folder) throws IOException {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            CausalLM base = base(name);
            LoraModel<CausalLM> model = Lora.wrap(base, config(RANGES), "a");
            base.save(folder);
            CausalLM large = CausalLM.load(folder);
            assertThat(large.config().layers()).isEqualTo(5);
            assertThat(large.config()).isEqualTo(base.config());
            assertThat(Parameters.of(large).keySet())
                    .containsExactlyElementsOf(Parameters.of(base).keySet());
            LoraModel<CausalLM> reference = Lora.wrap(large, config(List.of()), "a");
            copyFactors(model, reference);
            assertThat(model.adapter("a").weights().keySet())
                    .hasSize(10)
                    .containsExactlyElementsOf(reference.adapter("a").weights().keySet());
            close(base.forward(ids()), large.forward(ids()));

            KvCache cache = base.newCache(2);
            base.forward(ids().narrow(1, 0, 5), null, cache);
            close(
                    base.forward(ids().narrow(1, 5, 3), null, cache),
                    large.forward(ids()).narrow(1, 5, 3));
            long[][] prompts = {{1, 2, 3}, {4}};
            assertThat(base.generate(prompts, GenerationOptions.greedy(6)))
                    .isDeepEqualTo(large.generate(prompts, GenerationOptions.greedy(6)));

            // Merged, each copy has a weight of its own.
            Tensor adapted = base.forward(ids());
            model.mergeAdapter();
            close(base.forward(ids()), adapted);
            model.unmergeAdapter();
            assertThat(GoldenCase.difference(base.forward(ids()), adapted)).isZero();
            CausalLM merged = model.mergeAndUnload();
            close(merged.forward(ids()), adapted);
            assertThat(merged.config().layers()).isEqualTo(5);
            Path again = folder.resolve("merged");
            merged.save(again);
            close(CausalLM.load(again).forward(ids()), adapted);
        }
    }

    @Test
    void copiesShareMemoryAndTrainApart() throws IOException {
        try (PointerScope scope = new PointerScope()) {
            CausalLM base = base("llama");
            Map<String, Tensor> before = copies(base);
            long count = Parameters.count(base);
            LoraModel<CausalLM> model = Lora.wrap(base, config(RANGES), "a");
            assertThat(Parameters.count(base)).isEqualTo(count);
            assertThat(Parameters.of(base).values()).noneMatch(Tensor::requires_grad);
            base.loss(ids(), ids()).backward();
            Tensor first = model.adapter("a")
                    .weights()
                    .get("model.layers.1.self_attn.q_proj")
                    .b()
                    .grad();
            Tensor second = model.adapter("a")
                    .weights()
                    .get("model.layers.2.self_attn.q_proj")
                    .b()
                    .grad();
            assertThat(GoldenCase.largest(first)).isPositive();
            assertThat(GoldenCase.difference(first, second)).isPositive();

            model.mergeAdapter();
            assertThat(base.config().layers()).isEqualTo(5);
            CausalLM own = model.unload();
            assertThat(own.config().layers()).isEqualTo(3);
            Map<String, Tensor> after = copies(own);
            assertThat(after.keySet()).containsExactlyElementsOf(before.keySet());
            after.forEach(
                    (path, p) -> assertThat(p.equal(before.get(path))).as(path).isTrue());
            try (NoGradGuard guard = new NoGradGuard()) {
                assertThat(GoldenCase.difference(
                                own.forward(ids()), base("llama").forward(ids())))
                        .isZero();
                LoraModel<CausalLM> next = Lora.wrap(own, config(List.of(List.of(2, 3))), "b");
                assertThat(own.config().layers()).isEqualTo(1);
                own.forward(ids());
                next.unload();
                assertThat(own.config().layers()).isEqualTo(3);
            }
        }
    }

    @Test
    void filesFitTheModelTheyWereMadeFor(@TempDir Path folder) throws IOException {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            CausalLM base = base("llama");
            LoraModel<CausalLM> model = Lora.wrap(base, config(RANGES), "a");
            Tensor expected = base.forward(ids());
            model.save(folder, "a");
            model.loadAdapter(folder, "b");
            model.setActive("b");
            assertThat(GoldenCase.difference(base.forward(ids()), expected)).isZero();
            model.addWeightedAdapter(List.of("a", "b"), List.of(0.25, 0.75), "sum");
            model.setActive("sum");
            close(base.forward(ids()), expected);
            model.save(folder.resolve("sum"), "sum");
            CausalLM again = base("llama");
            Lora.load(again, folder.resolve("sum"), "sum");
            close(again.forward(ids()), expected);
        }
    }

    @Test
    void whatCannotBeIsSaidAndChangesNothing() throws IOException {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            CausalLM base = base("llama");
            Tensor alone = base.forward(ids());
            for (List<Integer> wrong : List.of(List.of(1, 1), List.of(2, 1), List.of(0, 4))) {
                assertThatThrownBy(() -> Lora.wrap(base, config(List.of(List.of(0, 1), wrong)), "a"))
                        .isInstanceOf(IllegalArgumentException.class)
                        .hasMessageContaining("layer_replication")
                        .hasMessageContaining(wrong.toString())
                        .hasMessageContaining("3 layers");
            }
            LoraConfig nothing =
                    config(RANGES).toBuilder().targetModules("nowhere").build();
            assertThatThrownBy(() -> Lora.wrap(base, nothing, "a")).hasMessageContaining("nowhere");
            assertThat(base.config().layers()).isEqualTo(3);
            assertThat(GoldenCase.difference(base.forward(ids()), alone)).isZero();

            LoraModel<CausalLM> model = Lora.wrap(base, config(RANGES), "a");
            for (List<List<Integer>> other : List.of(List.<List<Integer>>of(), List.of(List.of(0, 3)))) {
                assertThatThrownBy(() -> model.addAdapter("b", config(other)))
                        .isInstanceOf(IllegalArgumentException.class)
                        .hasMessageContaining(RANGES.toString());
            }
            model.addAdapter("b", config(RANGES));
            model.unload();
            LoraModel<CausalLM> plain = Lora.wrap(base, config(List.of()), "a");
            assertThatThrownBy(() -> plain.addAdapter("b", config(RANGES))).hasMessageContaining("not set");
            assertThat(base.config().layers()).isEqualTo(3);

            LoraConfig mlp = config(List.of(List.of(0, 1))).toBuilder()
                    .targetModules("lin0")
                    .build();
            assertThatThrownBy(() -> Lora.wrap(new Toys.Mlp(), mlp, "a"))
                    .hasMessageContaining("Mlp cannot repeat its layers")
                    .hasMessageContaining("org.lora4j.model.ReplicableLayers");
        }
    }

    /** A stack of layers of one's own. */
    static final class Stack extends Module implements ReplicableLayers {
        private final List<LinearImpl> layers = new ArrayList<>();

        Stack() {
            for (int i = 0; i < 3; i++) {
                layers.add(new LinearImpl(4, 4));
            }
            register();
        }

        private void register() {
            for (int i = 0; i < layers.size(); i++) {
                register_module("layer" + i, layers.get(i));
            }
        }

        private void replace(List<LinearImpl> next) {
            for (int i = 0; i < layers.size(); i++) {
                unregister_module("layer" + i);
            }
            layers.clear();
            layers.addAll(next);
            register();
        }

        @Override
        public int layerCount() {
            return layers.size();
        }

        @Override
        public LoraModel.Scope replicateLayers(List<Integer> sources) {
            List<LinearImpl> own = List.copyOf(layers);
            List<LinearImpl> copies = new ArrayList<>();
            for (int source : sources) {
                LinearImpl copy = Tensors.keep(new LinearImpl(4, 4));
                ReplicableLayers.share(own.get(source), copy);
                copies.add(copy);
            }
            replace(copies);
            return () -> replace(own);
        }

        Tensor forward(Tensor x) {
            for (LinearImpl layer : layers) {
                x = torch.tanh(layer.forward(x));
            }
            return x;
        }
    }

    @Test
    void anyModelCanRepeatItsLayers() {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            Stack net = new Stack();
            Tensor x = torch.randn(new long[] {3, 4});
            List<LinearImpl> own = List.copyOf(net.layers);
            Supplier<Tensor> repeated = () -> {
                Tensor y = x;
                for (int source : SOURCES) {
                    y = torch.tanh(own.get(source).forward(y));
                }
                return y;
            };
            Tensor expected = repeated.get();
            LoraConfig config =
                    config(RANGES).toBuilder().targetModules("layer4", "layer1").build();
            LoraModel<Stack> model = Lora.wrap(net, config, "a");
            assertThat(model.adapter("a").weights().keySet()).containsExactly("layer1", "layer4");
            assertThat(GoldenCase.difference(net.forward(x), expected)).isGreaterThan(1e-3);
            try (LoraModel.Scope off = model.disabled()) {
                close(net.forward(x), expected);
            }
            model.unload();
            assertThat(net.layers).containsExactlyElementsOf(own);
        }
    }
}
