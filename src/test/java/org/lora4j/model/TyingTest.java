package org.lora4j.model;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.LoraConfigBuilder;
import org.lora4j.layer.LoraWeights;
import org.lora4j.model.causal.CausalLM;
import org.lora4j.ops.LibTorch;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;

/** With {@code ensure_weight_tying} an output layer that shares the embedding's weight shares its adapter, too. */
class TyingTest {
    private static final String EMBEDDING = "model.embed_tokens";
    private static final String HEAD = "lm_head";

    private PointerScope scope;
    private CausalLM base;

    @BeforeEach
    void open() throws IOException {
        LibTorch.load();
        torch.manual_seed(7);
        scope = new PointerScope();
        base = CausalLM.load(GoldenCase.GOLDEN.resolve("models/llama_tied"), ScalarType.Float);
    }

    @AfterEach
    void close() {
        scope.close();
    }

    private static LoraConfigBuilder config(String... targets) {
        return LoraConfig.builder().r(3).loraAlpha(5).targetModules(List.of(targets));
    }

    private static LoraConfig tied(String... targets) {
        return config(targets).otherField("ensure_weight_tying", true).build();
    }

    private static Tensor ids() {
        return Tensor.create(3L, 17, 44, 5, 3, 9, 1, 0).view(2, 4);
    }

    private static Tensor loss(CausalLM model) {
        return model.loss(ids(), ids());
    }

    private static void fill(Tensor tensor) {
        try (NoGradGuard guard = new NoGradGuard()) {
            torch.normal_(tensor, 0, 0.3);
        }
    }

    private static LoraWeights weights(LoraModel<CausalLM> model, String path) {
        return model.adapter("default").weights().get(path);
    }

    /** The reference trains two adapters of their own, one at each layer, with equal values: the gradients add up. */
    @Test
    void theGradientsOfBothLayersMeetInTheEmbeddingsFactors() throws IOException {
        LoraModel<CausalLM> model = Lora.wrap(base, tied("embed_tokens"), "default");
        LoraWeights own = weights(model, EMBEDDING);
        assertThat(model.trainableParameters()).hasSize(2);
        fill(own.a());
        fill(own.b());

        CausalLM apart = CausalLM.load(GoldenCase.GOLDEN.resolve("models/llama_tied"), ScalarType.Float);
        LoraModel<CausalLM> two =
                Lora.wrap(apart, config("embed_tokens", "lm_head").build(), "default");
        LoraWeights atEmbedding = weights(two, EMBEDDING);
        LoraWeights atHead = weights(two, HEAD);
        try (NoGradGuard guard = new NoGradGuard()) {
            atEmbedding.a().copy_(own.a());
            atEmbedding.b().copy_(own.b());
            atHead.a().copy_(own.b().t());
            atHead.b().copy_(own.a().t());
        }
        Tensor loss = loss(base);
        Tensor reference = loss(apart);
        assertThat(loss.item_double()).isEqualTo(reference.item_double());
        loss.backward();
        reference.backward();
        near(own.a().grad(), atEmbedding.a().grad().add(atHead.b().grad().t()));
        near(own.b().grad(), atEmbedding.b().grad().add(atHead.a().grad().t()));
    }

    private static void near(Tensor ours, Tensor wanted) {
        assertThat(GoldenCase.difference(ours, wanted)).isLessThan(2e-6 * GoldenCase.largest(wanted));
    }

    @Test
    void mergedTheyAreOneWeightStill() throws IOException {
        LoraModel<CausalLM> model = Lora.wrap(base, tied("lm_head", "q_proj"), "default");
        model.adapter("default").weights().values().forEach(each -> {
            if (!each.isFollowing()) {
                fill(each.a());
                fill(each.b());
            }
        });
        try (NoGradGuard guard = new NoGradGuard()) {
            Tensor before = base.forward(ids());
            CausalLM merged = model.mergeAndUnload();
            assertThat(GoldenCase.difference(merged.forward(ids()), before))
                    .isLessThan(1e-5 * GoldenCase.largest(before));
            assertThat(ModelTargets.tied(new ModuleTree(merged))).containsEntry(EMBEDDING, List.of(HEAD));
        }
    }

    @Test
    void aSavedHeadTrainsTheOneWeightAndComesBack(@TempDir Path folder) throws IOException {
        Map<String, Tensor> original = new LinkedHashMap<>();
        Parameters.of(base)
                .forEach((path, value) -> original.put(path, value.detach().clone()));
        LoraModel<CausalLM> model = Lora.wrap(
                base,
                config("q_proj")
                        .modulesToSave("lm_head")
                        .otherField("ensure_weight_tying", true)
                        .build(),
                "default");
        assertThat(model.trainableParameters())
                .as("two factors in each of two layers, and the embedding")
                .hasSize(5);
        Tensor before = base.forward(ids()).detach();
        loss(base).backward();
        Tensor embedding =
                model.adapter("default").saved().get(EMBEDDING + ".weight").parameter();
        Tensor gradient = embedding.grad().detach().clone();
        // Every token's row gets a gradient through the output layer; through the embedding alone only seven would.
        assertThat(gradient.abs().sum(1).gt(new Scalar(0.0)).sum().item_long()).isEqualTo(gradient.size(0));
        try (NoGradGuard guard = new NoGradGuard()) {
            embedding.sub_(gradient);
            Tensor after = base.forward(ids());
            assertThat(GoldenCase.difference(after, before)).isGreaterThan(1e-3);
            model.save(folder);
            CausalLM fresh = CausalLM.load(GoldenCase.GOLDEN.resolve("models/llama_tied"), ScalarType.Float);
            Lora.load(fresh, folder, "default");
            assertThat(GoldenCase.difference(fresh.forward(ids()), after)).isZero();
            model.unload();
        }
        Parameters.of(base)
                .forEach((path, value) ->
                        assertThat(value.equal(original.get(path))).as(path).isTrue());
        assertThat(ModelTargets.tied(new ModuleTree(base))).containsEntry(EMBEDDING, List.of(HEAD));
    }

    @Test
    void aFileWhoseTensorsAreNotTiedIsRefused(@TempDir Path folder) throws IOException {
        LoraModel<CausalLM> model = Lora.wrap(base, tied("embed_tokens"), "default");
        fill(weights(model, EMBEDDING).a());
        model.save(folder);
        Path file = folder.resolve("adapter_model.safetensors");
        Map<String, Tensor> tensors = new LinkedHashMap<>();
        try (MappedTensors saved = TensorFiles.open(file)) {
            saved.names().forEach(name -> tensors.put(name, saved.tensor(name).clone()));
        }
        String key = "base_model.model.lm_head.lora_B.weight";
        assertThat(tensors).containsKey(key);
        tensors.put(key, tensors.get(key).add(new Scalar(1.0)));
        TensorFiles.write(file, tensors, TensorFiles.METADATA);
        CausalLM fresh = CausalLM.load(GoldenCase.GOLDEN.resolve("models/llama_tied"), ScalarType.Float);
        assertThatThrownBy(() -> Lora.load(fresh, folder, "default"))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessageContaining(key)
                .hasMessageContaining("ensure_weight_tying");
    }

    @Test
    void magnitudesCannotBeTied() {
        LoraConfig dora = config("embed_tokens")
                .otherField("ensure_weight_tying", true)
                .otherField("use_dora", true)
                .build();
        assertThatThrownBy(() -> Lora.wrap(base, dora, "default"))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessageContaining("use_dora");
    }
}
