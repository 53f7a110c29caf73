package org.lora4j.merge;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.lora4j.config.LoraConfig;
import org.lora4j.format.AdapterConfigJson;
import org.lora4j.format.DType;
import org.lora4j.format.FormatException;
import org.lora4j.ops.TensorFiles;

class UnmergeTest {
    private static final String[] ALL = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};

    @TempDir(factory = MemoryTempDir.class)
    Path folder;

    private final TinyCheckpoint tiny = new TinyCheckpoint(2, false);

    private Map<String, String> unmerge(Path merged) throws IOException {
        CheckpointUnmerge.unmerge(
                merged, folder.resolve("residual"), List.of(), folder.resolve("back"), MergeProgress.NONE);
        return SafetyTest.hashes(folder.resolve("back"));
    }

    @ParameterizedTest
    @CsvSource({
        "BF16, , false, false",
        "F16, , false, false",
        "F32, , false, true",
        "BF16, F32, false, false",
        "F32, BF16, false, false",
        "BF16, F16, true, false",
        "BF16, , true, true"
    })
    void theOriginalComesBackToTheBit(DType type, DType result, boolean stochastic, boolean dora) throws IOException {
        Path checkpoint = tiny.write(folder.resolve("base"), type, 9_000, 1);
        var config = LoraConfig.builder().r(3).loraAlpha(7).otherField("use_dora", dora);
        Path a = tiny.adapter(folder.resolve("a"), DType.BF16, config, 2, ALL);
        Path b = tiny.adapter(
                folder.resolve("b"), DType.F32, LoraConfig.builder().r(2), 3, "q_proj", "lm_head");
        MergeOptions options = MergeOptions.of(checkpoint, new WeightedAdapter(a, 0.7), new WeightedAdapter(b, -1))
                .withDtype(result)
                .withResidual(folder.resolve("residual"));
        options = stochastic ? options.withSeed(11) : options;
        Path merged = folder.resolve("merged");
        CheckpointMerge.merge(options, merged, false, MergeProgress.NONE);
        assertThat(unmerge(merged)).isEqualTo(SafetyTest.hashes(checkpoint));
    }

    @Test
    void newShardsUntiedLayersAndGrownVocabulariesComeBack() throws IOException {
        Map<String, Tensor> base = new LinkedHashMap<>();
        base.put("model.embed_tokens.weight", torch.randn(7, 5).to(ScalarType.BFloat16));
        base.put("model.q.weight", torch.randn(6, 5).to(ScalarType.BFloat16));
        base.put("model.norm.weight", torch.randn(5).to(ScalarType.BFloat16));
        base.put("model.steps", torch.ones(3).to(ScalarType.Long));
        Map<String, Tensor> adapter = new LinkedHashMap<>();
        adapter.put("base_model.model.model.embed_tokens.weight", torch.randn(9, 5));
        adapter.put("base_model.model.lm_head.weight", torch.randn(9, 5));
        adapter.put("base_model.model.model.norm.weight", torch.randn(5).to(ScalarType.BFloat16));
        adapter.put("base_model.model.model.q.lora_A.weight", torch.randn(2, 5));
        adapter.put("base_model.model.model.q.lora_B.weight", torch.randn(6, 2).mul(new Scalar(0.1)));
        Path checkpoint = Files.createDirectories(folder.resolve("base"));
        TensorFiles.write(checkpoint.resolve("model.safetensors"), base, TensorFiles.METADATA);
        Files.writeString(checkpoint.resolve("config.json"), "{\"tie_word_embeddings\": true, \"vocab_size\": 7}");
        Path a = Files.createDirectories(folder.resolve("a"));
        TensorFiles.write(a.resolve("adapter_model.safetensors"), adapter, TensorFiles.METADATA);
        AdapterConfigJson.write(
                a.resolve("adapter_config.json"),
                LoraConfig.builder().r(2).targetModules("q").build());
        MergeOptions options = MergeOptions.of(checkpoint, new WeightedAdapter(a, 1))
                .withTied(TiedPolicy.UNTIE)
                .withMaxShardBytes(100)
                .withResidual(folder.resolve("residual"));
        Path merged = folder.resolve("merged");
        CheckpointMerge.merge(options, merged, false, MergeProgress.NONE);
        assertThat(unmerge(merged)).isEqualTo(SafetyTest.hashes(checkpoint));
    }

    @Test
    void inPlaceToo() throws IOException {
        Path checkpoint = tiny.write(folder.resolve("base"), DType.BF16, 9_000, 1);
        Map<String, String> before = SafetyTest.hashes(checkpoint);
        Path a = tiny.adapter(
                folder.resolve("a"), DType.BF16, LoraConfig.builder().r(3).loraAlpha(7), 2, "q_proj");
        MergeOptions options =
                MergeOptions.of(checkpoint, new WeightedAdapter(a, 1)).withResidual(folder.resolve("residual"));
        CheckpointMerge.mergeInPlace(options, false, MergeProgress.NONE);
        assertThat(unmerge(checkpoint)).isEqualTo(before);
    }

    @Test
    void theResidualIsSmall() throws IOException {
        TinyCheckpoint larger = new TinyCheckpoint(1, false, 16);
        Path checkpoint = larger.write(folder.resolve("base"), DType.BF16, 1 << 30, 1);
        // What is added is about a thirtieth of the weight.
        Path a = larger.adapter(
                folder.resolve("a"), DType.BF16, LoraConfig.builder().r(4).loraAlpha(0.3), 2, ALL);
        MergeOptions options =
                MergeOptions.of(checkpoint, new WeightedAdapter(a, 1)).withResidual(folder.resolve("residual"));
        CheckpointMerge.merge(options, folder.resolve("merged"), false, MergeProgress.NONE);
        double ratio = CheckpointMerge.plan(options.withResidual(null))
                .changes()
                .get(0)
                .ratio();
        assertThat(ratio).isBetween(0.01, 0.1);
        long changed = larger.modules(ALL).stream()
                .mapToLong(module -> 2 * Numbers.count(larger.shapes.get(module + ".weight")))
                .sum();
        long size = Files.size(folder.resolve("residual/model.safetensors.zip"));
        assertThat(size).isLessThan(changed / 8);
        assertThat(unmerge(folder.resolve("merged"))).isEqualTo(SafetyTest.hashes(checkpoint));
    }

    @Test
    void whatDoesNotBelongTogetherIsRefused() throws IOException {
        Path checkpoint = tiny.write(folder.resolve("base"), DType.BF16, 1 << 20, 1);
        Path a = tiny.adapter(
                folder.resolve("a"), DType.BF16, LoraConfig.builder().r(3).loraAlpha(7), 2, "q_proj");
        Path merged = folder.resolve("merged");
        CheckpointMerge.merge(
                MergeOptions.of(checkpoint, new WeightedAdapter(a, 1)).withResidual(folder.resolve("residual")),
                merged,
                false,
                MergeProgress.NONE);
        Path file = merged.resolve("model.safetensors");
        byte[] bytes = Files.readAllBytes(file);
        for (int at : new int[] {bytes.length - 1, bytes.length / 2}) {
            byte[] other = bytes.clone();
            other[at] ^= 4;
            Files.write(file, other);
            assertThatThrownBy(() -> unmerge(merged))
                    .isInstanceOf(FormatException.class)
                    .hasMessageContaining("is not the original");
            assertThat(folder.resolve("back")).doesNotExist();
        }
        Files.write(file, bytes);
        Path zip = folder.resolve("residual/model.safetensors.zip");
        byte[] residual = Files.readAllBytes(zip);
        Files.write(zip, java.util.Arrays.copyOf(residual, residual.length / 2));
        assertThatThrownBy(() -> unmerge(merged)).isInstanceOf(IOException.class);
        Files.write(zip, residual);
        Path config = a.resolve("adapter_config.json");
        String text = Files.readString(config);
        Files.writeString(config, text.replace("\"lora_alpha\": 7", "\"lora_alpha\": 8"));
        assertThatThrownBy(() -> unmerge(merged)).hasMessageContaining("is not the adapter that was merged");
        Files.writeString(config, text);
        assertThat(unmerge(merged)).isEqualTo(SafetyTest.hashes(checkpoint));
    }
}
