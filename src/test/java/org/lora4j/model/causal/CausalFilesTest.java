package org.lora4j.model.causal;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import java.util.Random;
import java.util.stream.Stream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.lora4j.format.FormatException;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;

class CausalFilesTest {
    private static final String TIED = TinyModels.with("\"tie_word_embeddings\": true");

    @TempDir
    Path folder;

    @Test
    void everyTensorThatDoesNotFitIsListed() throws IOException {
        try (PointerScope scope = new PointerScope()) {
            Map<String, Tensor> tensors = TinyModels.weights(TinyModels.LLAMA, ScalarType.Float, 1);
            tensors.remove("model.norm.weight");
            tensors.remove("model.layers.1.mlp.up_proj.weight");
            tensors.put(
                    "model.layers.0.self_attn.k_proj.weight", TinyModels.random(new long[] {24, 24}, ScalarType.Float));
            tensors.put("model.layers.0.self_attn.q_proj.bias", TinyModels.random(new long[] {24}, ScalarType.Float));
            tensors.put(
                    "model.layers.0.self_attn.rotary_emb.inv_freq",
                    TinyModels.random(new long[] {2}, ScalarType.Float));
            write(TinyModels.LLAMA, tensors);
            assertThatThrownBy(() -> CausalLM.load(folder))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessageContaining("2 missing: model.layers.1.mlp.up_proj.weight, model.norm.weight")
                    .hasMessageContaining(
                            "1 misshapen: model.layers.0.self_attn.k_proj.weight is [24, 24], not [8, 24]")
                    .hasMessageContaining("1 unexpected: model.layers.0.self_attn.q_proj.bias.");
        }
    }

    @Test
    void oldBuffersAreLetBe() throws IOException {
        try (PointerScope scope = new PointerScope()) {
            Map<String, Tensor> tensors = TinyModels.weights(TinyModels.LLAMA, ScalarType.Float, 1);
            tensors.put(
                    "model.layers.0.self_attn.rotary_emb.inv_freq",
                    TinyModels.random(new long[] {2}, ScalarType.Float));
            write(TinyModels.LLAMA, tensors);
            CausalLM.load(folder).close();
        }
    }

    @Test
    void aHeadMayBeAbsentOnlyIfTied() throws IOException {
        try (PointerScope scope = new PointerScope()) {
            Map<String, Tensor> tensors = TinyModels.weights(TIED, ScalarType.Float, 1);
            assertThat(tensors).doesNotContainKey("lm_head.weight");
            write(TinyModels.LLAMA, tensors);
            assertThatThrownBy(() -> CausalLM.load(folder)).hasMessageContaining("1 missing: lm_head.weight");
            write(TIED, tensors);
            try (CausalLM model = CausalLM.load(folder)) {
                assertThat(model.isTied()).isTrue();
            }
            // As transformers: a head of its own is used in spite of the configuration, an equal one is tied.
            tensors.put(
                    "lm_head.weight", tensors.get("model.embed_tokens.weight").mul(new Scalar(2.0)));
            write(TIED, tensors);
            try (CausalLM model = CausalLM.load(folder)) {
                assertThat(model.isTied()).isFalse();
            }
            tensors.put(
                    "lm_head.weight", tensors.get("model.embed_tokens.weight").clone());
            write(TIED, tensors);
            try (CausalLM model = CausalLM.load(folder)) {
                assertThat(model.isTied()).isTrue();
            }
        }
    }

    @Test
    void typesThatDifferNeedAName() throws IOException {
        try (PointerScope scope = new PointerScope()) {
            Map<String, Tensor> tensors = TinyModels.weights(TinyModels.LLAMA, ScalarType.BFloat16, 1);
            tensors.computeIfPresent("model.norm.weight", (n, t) -> t.to(ScalarType.Float));
            write(TinyModels.LLAMA, tensors);
            assertThatThrownBy(() -> CausalLM.load(folder))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessageContaining("BF16")
                    .hasMessageContaining("F32");
            try (CausalLM model = CausalLM.load(folder, ScalarType.Half)) {
                assertThat(model.dtype()).isEqualTo(ScalarType.Half);
            }
            assertThatThrownBy(() -> CausalLM.load(folder, ScalarType.Int)).hasMessageContaining("type is Int");
        }
    }

    @Test
    void absentAndBrokenFilesAreNamed() throws IOException {
        assertThatThrownBy(() -> CausalLM.load(folder))
                .isInstanceOf(IOException.class)
                .hasMessageContaining("config.json");
        Files.writeString(folder.resolve("config.json"), TinyModels.LLAMA);
        assertThatThrownBy(() -> CausalLM.load(folder))
                .isInstanceOf(IOException.class)
                .hasMessageContaining("model.safetensors");
        Files.write(folder.resolve("model.safetensors"), new byte[] {1, 2, 3});
        assertThatThrownBy(() -> CausalLM.load(folder)).isInstanceOf(FormatException.class);
    }

    /** What is written is read back bit for bit, in one file or in shards, and computes the same. */
    @ParameterizedTest
    @CsvSource({"BFloat16,false,1000000", "Float,true,1000000", "Half,false,9000", "Float,true,5000"})
    void aSavedModelIsTheSame(ScalarType type, boolean tied, long shardBytes) throws IOException {
        Path target = folder.resolve("saved/model");
        Path source = folder.resolve("source");
        TinyModels.write(source, tied ? TIED : TinyModels.LLAMA, type, 3);
        Files.writeString(source.resolve("tokenizer.json"), "{}");
        Files.writeString(source.resolve("generation_config.json"), "{\"eos_token_id\": 3}");
        Files.writeString(source.resolve("notes.txt"), "no part of a model");
        try (PointerScope scope = new PointerScope();
                CausalLM model = CausalLM.load(source)) {
            // What is saved is what the model holds now, not what the file held; the file stays as it is.
            model.model.layers.get(1).self_attn.v_proj.weight().mul_(new Scalar(1.5));
            model.save(target, shardBytes);
            assertThatThrownBy(() -> model.save(target)).isInstanceOf(FileAlreadyExistsException.class);
            assertThatThrownBy(() -> model.save(source)).isInstanceOf(IllegalArgumentException.class);
            try (CausalLM again = CausalLM.load(target);
                    MappedTensors before = TensorFiles.open(source);
                    MappedTensors after = TensorFiles.open(target)) {
                assertThat(after.names()).containsExactlyInAnyOrderElementsOf(before.names());
                assertThat(after.names().contains("lm_head.weight")).isEqualTo(!tied);
                assertThat(again.isTied()).isEqualTo(tied);
                assertThat(again.dtype()).isEqualTo(type);
                for (String name : before.names()) {
                    Tensor old = before.tensor(name);
                    boolean changed = name.equals("model.layers.1.self_attn.v_proj.weight");
                    assertThat(after.tensor(name).equal(changed ? old.mul(new Scalar(1.5)) : old))
                            .as(name)
                            .isTrue();
                }
                Tensor ids = TinyModels.ids(new Random(1), 2, 6, 41);
                assertThat(Values.difference(again.forward(ids), model.forward(ids)))
                        .isZero();
            }
        }
        assertThat(target.resolve("tokenizer.json")).hasContent("{}");
        assertThat(target.resolve("notes.txt")).doesNotExist();
        assertThat(CausalConfig.read(target).eosTokenIds()).containsExactly(3L);
        try (Stream<Path> files = Files.list(target)) {
            long shards =
                    files.filter(f -> f.toString().endsWith(".safetensors")).count();
            assertThat(shards > 1).isEqualTo(shardBytes < 100_000);
        }
    }

    @Test
    void aHeadThatCameLooseIsSaved() throws IOException {
        Path target = folder.resolve("saved");
        TinyModels.write(folder, TIED, ScalarType.Float, 3);
        try (PointerScope scope = new PointerScope();
                CausalLM model = CausalLM.load(folder, ScalarType.BFloat16)) {
            model.lm_head.weight().set_data(model.lm_head.weight().clone().mul(new Scalar(0.5)));
            model.save(target);
            try (CausalLM again = CausalLM.load(target)) {
                assertThat(again.config().tieWordEmbeddings()).isFalse();
                assertThat(again.dtype()).isEqualTo(ScalarType.BFloat16);
                assertThat(again.lm_head.weight().equal(model.lm_head.weight())).isTrue();
            }
        }
        assertThat(target.resolve("config.json")).content().contains("\"torch_dtype\" : \"bfloat16\"");
    }

    private void write(String json, Map<String, Tensor> tensors) throws IOException {
        Files.writeString(folder.resolve("config.json"), json);
        TensorFiles.write(folder.resolve("model.safetensors"), tensors, TensorFiles.METADATA);
    }
}
