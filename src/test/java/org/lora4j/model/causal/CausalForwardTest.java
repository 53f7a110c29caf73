package org.lora4j.model.causal;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.bytedeco.pytorch.global.torch.ones;

import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.EmbeddingImpl;
import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.StringSharedModuleDict;
import org.bytedeco.pytorch.StringTensorDict;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class CausalForwardTest {
    @TempDir
    Path folder;

    private static final String WINDOWED = TinyModels.with(
            "\"architectures\": [\"Qwen3ForCausalLM\"]",
            "\"model_type\": \"qwen3\"",
            "\"head_dim\": 6",
            "\"use_sliding_window\": true",
            "\"sliding_window\": 4",
            "\"max_window_layers\": 1");

    private CausalLM model(String json) throws IOException {
        return CausalLM.load(TinyModels.write(folder, json, ScalarType.Float, 11));
    }

    /** Any split of a sequence over a cache gives the logits of the whole, with a window and with padding too. */
    @ParameterizedTest
    @ValueSource(longs = {1, 2, 3, 4, 5})
    void cachedPiecesGiveTheWhole(long seed) throws IOException {
        Random random = new Random(seed);
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard();
                CausalLM model = model(seed % 2 == 0 ? TinyModels.LLAMA : WINDOWED);
                KvCache cache = model.newCache(1 + random.nextInt(4))) {
            int tokens = 9 + random.nextInt(12);
            Tensor ids = TinyModels.ids(random, 3, tokens, 41);
            Tensor mask = ones(3, tokens).to(ScalarType.Long);
            boolean padded = seed > 2;
            if (padded) {
                mask.select(0, 1).narrow(0, 0, 5).zero_();
            }
            Tensor whole = model.forward(ids, padded ? mask : null, null);
            int done = 0;
            while (done < tokens) {
                int step = Math.min(tokens - done, 1 + random.nextInt(4));
                Tensor piece =
                        model.forward(ids.narrow(1, done, step), padded ? mask.narrow(1, 0, done + step) : null, cache);
                Tensor weights = mask.narrow(1, done, step).unsqueeze(2);
                assertThat(Values.difference(
                                piece.mul(weights), whole.narrow(1, done, step).mul(weights)))
                        .as("seed %d, tokens %d to %d", seed, done, done + step)
                        .isLessThan(1e-5 * Values.largest(whole));
                done += step;
            }
            assertThat(cache.length()).isEqualTo(tokens);
        }
    }

    /** Every layer is called through its field, once a pass, so that a layer put there takes part. */
    @Test
    void everyLeafIsCalledThroughItsField() throws IOException {
        List<String> calls = new ArrayList<>();
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard();
                CausalLM model = model(TinyModels.LLAMA)) {
            model.model.embed_tokens = new HeardEmbedding(model.model.embed_tokens, calls);
            model.lm_head = new Heard("lm_head", model.lm_head, calls);
            for (int i = 0; i < 3; i++) {
                DecoderLayer layer = model.model.layers.get(i);
                layer.self_attn.q_proj = new Heard(i + ".q_proj", layer.self_attn.q_proj, calls);
                layer.self_attn.k_proj = new Heard(i + ".k_proj", layer.self_attn.k_proj, calls);
                layer.self_attn.v_proj = new Heard(i + ".v_proj", layer.self_attn.v_proj, calls);
                layer.self_attn.o_proj = new Heard(i + ".o_proj", layer.self_attn.o_proj, calls);
                layer.mlp.gate_proj = new Heard(i + ".gate_proj", layer.mlp.gate_proj, calls);
                layer.mlp.up_proj = new Heard(i + ".up_proj", layer.mlp.up_proj, calls);
                layer.mlp.down_proj = new Heard(i + ".down_proj", layer.mlp.down_proj, calls);
            }
            model.forward(TinyModels.ids(new Random(1), 2, 5, 41));
            List<String> expected = new ArrayList<>(List.of("embed_tokens"));
            for (int i = 0; i < 3; i++) {
                for (String name :
                        List.of("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")) {
                    expected.add(i + "." + name);
                }
            }
            expected.add("lm_head");
            assertThat(calls).isEqualTo(expected);
        }
    }

    @Test
    void pathsAreThoseOfHuggingFace() throws IOException {
        try (PointerScope scope = new PointerScope();
                CausalLM model = model(WINDOWED)) {
            List<String> parameters = new ArrayList<>();
            StringTensorDict named = model.named_parameters();
            for (long i = 0; i < named.size(); i++) {
                parameters.add(named.get(i).key().getString());
                assertThat(named.get(i).value().requires_grad()).isFalse();
            }
            assertThat(parameters)
                    .containsExactlyInAnyOrderElementsOf(
                            Parameters.of(model.config()).keySet());
            StringSharedModuleDict modules = model.named_modules("root", true);
            List<String> paths = new ArrayList<>();
            for (long i = 0; i < modules.size(); i++) {
                paths.add(modules.get(i).key().getString());
            }
            assertThat(paths)
                    .contains(
                            "root.model.layers.2.self_attn.q_norm",
                            "root.model.layers.0.mlp.down_proj",
                            "root.model.norm",
                            "root.lm_head");
            LinearImpl gate = model.model.layers.get(1).mlp.gate_proj;
            assertThat(gate.options().in_features().get()).isEqualTo(24);
            assertThat(gate.options().out_features().get()).isEqualTo(37);
            assertThat(model.is_training()).isFalse();
        }
    }

    @Test
    void attentionDropoutActsInTrainingOnly() throws IOException {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard();
                CausalLM plain = model(TinyModels.LLAMA);
                CausalLM model = CausalLM.load(TinyModels.write(
                        folder.resolve("dropout"),
                        TinyModels.with("\"attention_dropout\": 0.5"),
                        ScalarType.Float,
                        11))) {
            Tensor ids = TinyModels.ids(new Random(2), 2, 7, 41);
            assertThat(Values.difference(model.forward(ids), plain.forward(ids)))
                    .isZero();
            model.train(true);
            assertThat(Values.difference(model.forward(ids), plain.forward(ids)))
                    .isGreaterThan(1e-3);
        }
    }

    @Test
    void anEmptyBatchHasNoLogits() throws IOException {
        try (PointerScope scope = new PointerScope();
                CausalLM model = model(TinyModels.LLAMA)) {
            Tensor logits = model.forward(ones(0, 4).to(ScalarType.Long));
            assertThat(org.lora4j.ops.Tensors.shape(logits)).containsExactly(0, 4, 41);
        }
    }

    @Test
    void wrongArgumentsAreNamed() throws IOException {
        try (PointerScope scope = new PointerScope();
                CausalLM model = model(TinyModels.LLAMA);
                KvCache cache = model.newCache(4);
                KvCache other = new KvCache(2, 4)) {
            Tensor ids = TinyModels.ids(new Random(3), 2, 5, 41);
            assertThatThrownBy(() -> model.forward(ids.to(ScalarType.Float))).hasMessageContaining("inputIds");
            assertThatThrownBy(() -> model.forward(ids.select(0, 0))).hasMessageContaining("inputIds");
            assertThatThrownBy(() -> model.forward(ids, ids.narrow(1, 0, 4), null))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessageContaining("attentionMask must be [2, 5]");
            assertThatThrownBy(() -> model.forward(ids, null, other))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessageContaining("2 layers");
            model.forward(ids, null, cache);
            assertThatThrownBy(() -> model.forward(ids.narrow(0, 0, 1), null, cache))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessageContaining("batch of 2");
            model.model.embed_tokens.weight().requires_grad_(true);
            assertThatThrownBy(() -> model.forward(ids, null, cache))
                    .isInstanceOf(IllegalStateException.class)
                    .hasMessageContaining("NoGradGuard");
        }
    }

    @Test
    void lossIsTheMeanOverCountedLabels() throws IOException {
        try (PointerScope scope = new PointerScope();
                CausalLM model = model(TinyModels.LLAMA)) {
            Random random = new Random(4);
            Tensor ids = TinyModels.ids(random, 3, 6, 41);
            long[] labels = Values.longs(ids);
            for (int i = 0; i < labels.length; i++) {
                labels[i] = random.nextInt(3) == 0 ? CausalLM.IGNORED : labels[i];
            }
            double[] logits = Values.doubles(model.forward(ids));
            double sum = 0;
            int count = 0;
            for (int row = 0; row < 3; row++) {
                for (int t = 1; t < 6; t++) {
                    long label = labels[row * 6 + t];
                    if (label != CausalLM.IGNORED) {
                        int at = (row * 6 + t - 1) * 41;
                        double normaliser = 0;
                        for (int v = 0; v < 41; v++) {
                            normaliser += Math.exp(logits[at + v]);
                        }
                        sum += Math.log(normaliser) - logits[at + (int) label];
                        count++;
                    }
                }
            }
            Tensor target = Tensor.create(labels, 3, 6);
            double loss = model.loss(ids, target).item_double();
            assertThat(loss).isCloseTo(sum / count, org.assertj.core.data.Offset.offset(1e-5));
            model.lm_head = new Heard("lm_head", model.lm_head, new ArrayList<>());
            assertThat(model.loss(ids, target).item_double())
                    .isCloseTo(loss, org.assertj.core.data.Offset.offset(1e-6));
            assertThatThrownBy(() -> model.loss(ids, target.narrow(1, 0, 5))).hasMessageContaining("labels");
            Tensor none = ids.mul(new Scalar(0)).sub(new Scalar(100));
            assertThatThrownBy(() -> model.loss(ids, none))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessageContaining("no label counts");
        }
    }

    /** The gradient of the loss agrees with the change of the loss, through rotation, cache-free attention and norms. */
    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void gradientsAreThoseOfTheLoss(boolean windowed) throws IOException {
        String json = windowed ? WINDOWED : TinyModels.LLAMA;
        try (PointerScope scope = new PointerScope();
                CausalLM model = CausalLM.load(TinyModels.write(folder, json, ScalarType.Double, 5))) {
            Tensor ids = TinyModels.ids(new Random(6), 2, 8, 41);
            for (LinearImpl linear : List.of(
                    model.model.layers.get(0).self_attn.q_proj,
                    model.model.layers.get(1).self_attn.k_proj,
                    model.model.layers.get(2).mlp.down_proj)) {
                Tensor weight = linear.weight();
                weight.requires_grad_(true);
                model.loss(ids, ids).backward();
                double gradient = weight.grad().select(0, 1).select(0, 2).item_double();
                double step = 1e-2;
                double change;
                try (NoGradGuard guard = new NoGradGuard()) {
                    Tensor entry = weight.select(0, 1).select(0, 2);
                    entry.add_(new Scalar(step));
                    double up = model.loss(ids, ids).item_double();
                    entry.add_(new Scalar(-2 * step));
                    change = up - model.loss(ids, ids).item_double();
                    entry.add_(new Scalar(step));
                }
                weight.requires_grad_(false);
                // The loss is float32: a difference of two carries an error of some 1e-7 over the step.
                assertThat(gradient).isCloseTo(change / (2 * step), org.assertj.core.data.Offset.offset(5e-4));
                assertThat(Math.abs(gradient)).isGreaterThan(1e-5);
            }
        }
    }

    private static final class Heard extends LinearImpl {
        private final String name;
        private final List<String> calls;

        Heard(String name, Pointer linear, List<String> calls) {
            super(linear);
            this.name = name;
            this.calls = calls;
        }

        @Override
        public Tensor forward(Tensor x) {
            calls.add(name);
            return super.forward(x);
        }
    }

    private static final class HeardEmbedding extends EmbeddingImpl {
        private final List<String> calls;

        HeardEmbedding(Pointer embedding, List<String> calls) {
            super(embedding);
            this.calls = calls;
        }

        @Override
        public Tensor forward(Tensor x) {
            calls.add("embed_tokens");
            return super.forward(x);
        }
    }
}
