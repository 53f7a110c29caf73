package org.lora4j.merge;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.config.LoraConfig;
import org.lora4j.format.AdapterConfigJson;
import org.lora4j.format.DType;
import org.lora4j.format.SafetensorsFile;
import org.lora4j.format.ShardedCheckpoint;
import org.lora4j.format.StrictJson;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;

class CheckpointMergeTest {
    private static final String[] ALL = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};

    @TempDir(factory = MemoryTempDir.class)
    Path folder;

    private final TinyCheckpoint tiny = new TinyCheckpoint(2, false);

    @ParameterizedTest
    @CsvSource({"F32, F32", "BF16, BF16", "F16, F16", "BF16, F32", "F32, BF16", "F16, BF16"})
    void twoAdaptersWithWeightsAreAddedWithOneRounding(DType base, DType factors) throws IOException {
        Path checkpoint = tiny.write(folder.resolve("base"), base, 20_000, 1);
        var first = LoraConfig.builder().r(3).loraAlpha(7).rankPattern(Map.of("k_proj", 1));
        var second = LoraConfig.builder().r(5).loraAlpha(4).useRslora(true);
        Path a = tiny.adapter(folder.resolve("a"), factors, first, 2, ALL);
        Path b = tiny.adapter(folder.resolve("b"), factors, second, 3, "q_proj", "lm_head");
        var adapters = new WeightedAdapter[] {new WeightedAdapter(a, 0.75), new WeightedAdapter(b, -1.5)};
        MergeManifest manifest = CheckpointMerge.merge(
                MergeOptions.of(checkpoint, adapters), folder.resolve("out"), false, MergeProgress.NONE);

        assertThat(folder.resolve("out.merging")).doesNotExist();
        assertSum(checkpoint, folder.resolve("out"), adapters, base);
        assertThat(names(folder.resolve("out")))
                .containsExactlyInAnyOrderElementsOf(plus(names(checkpoint), MergeManifest.FILE_NAME));
        for (String name : List.of("tokenizer.json", "config.json", ShardedCheckpoint.INDEX_FILE)) {
            assertThat(folder.resolve("out").resolve(name)).hasSameBinaryContentAs(checkpoint.resolve(name));
        }
        for (FileRecord record : manifest.inputs()) {
            assertThat(OutputFile.headerOf(
                            SafetensorsFile.open(folder.resolve("out").resolve(record.name()))))
                    .isEqualTo(OutputFile.headerOf(SafetensorsFile.open(checkpoint.resolve(record.name()))));
        }
        Verification verified = Verification.of(folder.resolve("out"), manifest, MergeProgress.NONE);
        assertThat(verified.differences()).isEmpty();
        assertThat(verified.tensors()).isEqualTo(tiny.shapes.size());
        assertThat(Verification.ofInputs(checkpoint, MergeManifest.read(folder.resolve("out")), MergeProgress.NONE)
                        .isEqual())
                .isTrue();
    }

    /** Every tensor is the exact sum, computed in double, within one rounding of its type. */
    private static void assertSum(Path base, Path out, WeightedAdapter[] adapters, DType type) throws IOException {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard();
                MappedTensors before = TensorFiles.open(base);
                MappedTensors after = TensorFiles.open(out)) {
            Map<String, Tensor> expected = new LinkedHashMap<>();
            before.names()
                    .forEach(name -> expected.put(name, before.tensor(name).to(ScalarType.Double)));
            for (WeightedAdapter adapter : adapters) {
                LoraConfig config = AdapterConfigJson.read(adapter.folder().resolve("adapter_config.json"));
                MappedTensors factors = TensorFiles.open(adapter.folder().resolve("adapter_model.safetensors"));
                for (String key : factors.names()) {
                    if (key.endsWith(".lora_A.weight")) {
                        String module = key.substring("base_model.model.".length(), key.length() - 14);
                        Tensor a = factors.tensor(key).to(ScalarType.Double);
                        Tensor b =
                                factors.tensor(key.replace("lora_A", "lora_B")).to(ScalarType.Double);
                        double scale = adapter.weight() * config.scale(module);
                        expected.computeIfPresent(module + ".weight", (n, w) -> w.add(b.matmul(a), new Scalar(scale)));
                    }
                }
            }
            double step = type == DType.F32 ? 1e-7 : type == DType.BF16 ? 1.0 / 256 : 1.0 / 2048;
            for (String name : after.names()) {
                Tensor ours = after.tensor(name).to(ScalarType.Double);
                Tensor wanted = expected.get(name);
                Tensor allowed = wanted.abs().mul(new Scalar(step)).add(new Scalar(2e-7));
                assertThat(ours.sub(wanted).abs().le(allowed).all().item_bool())
                        .as(name)
                        .isTrue();
            }
        }
    }

    @ParameterizedTest
    @ValueSource(strings = {"F32", "BF16", "F16"})
    void theResultMayHaveAnotherTypeAndOtherShards(DType type) throws IOException {
        Path checkpoint = tiny.write(folder.resolve("base"), DType.BF16, 1 << 20, 1);
        Path a = tiny.adapter(
                folder.resolve("a"), DType.BF16, LoraConfig.builder().r(3).loraAlpha(7), 2, ALL);
        MergeOptions options = MergeOptions.of(checkpoint, new WeightedAdapter(a, 1))
                .withDtype(type)
                .withMaxShardBytes(9_000);
        Path out = folder.resolve("out");
        CheckpointMerge.merge(options, out, false, MergeProgress.NONE);
        assertSum(checkpoint, out, options.adapters().toArray(new WeightedAdapter[0]), type);
        long total = 0;
        try (ShardedCheckpoint result = ShardedCheckpoint.open(out)) {
            assertThat(result.files()).hasSizeGreaterThan(2);
            for (ShardedCheckpoint.Location location : result.tensors().values()) {
                assertThat(location.info().dtype()).isEqualTo(type);
                total += location.info().bytes();
            }
        }
        var index = StrictJson.readObject(out.resolve(ShardedCheckpoint.INDEX_FILE), 1 << 20);
        assertThat(index.get("metadata")).isEqualTo(Map.of("total_size", total));
        assertThat(Verification.of(out, MergeManifest.read(out), MergeProgress.NONE)
                        .isEqual())
                .isTrue();
    }

    @Test
    void anIndexWithAWrongSizeIsWrittenRight() throws IOException {
        Path checkpoint = tiny.write(folder.resolve("base"), DType.BF16, 9_000, 1);
        Path index = checkpoint.resolve(ShardedCheckpoint.INDEX_FILE);
        Files.writeString(index, Files.readString(index).replaceFirst("\"total_size\": \\d+", "\"total_size\": 7"));
        Path a = tiny.adapter(
                folder.resolve("a"), DType.BF16, LoraConfig.builder().r(2), 2, "q_proj");
        CheckpointMerge.merge(
                MergeOptions.of(checkpoint, new WeightedAdapter(a, 1)),
                folder.resolve("out"),
                false,
                MergeProgress.NONE);
        long total = tiny.shapes.values().stream()
                .mapToLong(shape -> 2 * Numbers.count(shape))
                .sum();
        assertThat(Files.readString(folder.resolve("out").resolve(ShardedCheckpoint.INDEX_FILE)))
                .contains("\"total_size\" : " + total);
    }

    @Test
    void tilesOfAnySizeGiveTheSameBits() throws IOException {
        Path checkpoint = tiny.write(folder.resolve("base"), DType.BF16, 1 << 20, 1);
        Path a = tiny.adapter(
                folder.resolve("a"),
                DType.F16,
                LoraConfig.builder().r(3).loraAlpha(7).otherField("use_dora", true),
                2,
                ALL);
        Path b = tiny.adapter(
                folder.resolve("b"), DType.F32, LoraConfig.builder().r(2).loraAlpha(9), 3, "q_proj");
        MergeOptions options = MergeOptions.of(checkpoint, new WeightedAdapter(b, 2), new WeightedAdapter(a, 1))
                .withSeed(5);
        try (MergeSession session = MergeSession.open(options)) {
            for (OutputFile.Tensor tensor : session.files().get(0).tensors()) {
                if (tensor.edit() != null) {
                    byte[] whole = compute(session, tensor, 1 << 20);
                    assertThat(compute(session, tensor, 7))
                            .as(tensor.info().name())
                            .isEqualTo(whole);
                    assertThat(compute(session, tensor, 100))
                            .as(tensor.info().name())
                            .isEqualTo(whole);
                }
            }
        }
    }

    private static byte[] compute(MergeSession session, OutputFile.Tensor tensor, int tile) throws IOException {
        TensorMerge merge = new TensorMerge(tensor, session.adapters(), session.options(), tile);
        var all = java.nio.ByteBuffer.allocate((int) tensor.info().bytes());
        merge.start();
        for (Matrices.Tile each : merge.tiles()) {
            var in = java.nio.ByteBuffer.allocateDirect(merge.inBytes(each));
            merge.read(each, in);
            all.put(merge.compute(each, in.flip(), java.nio.ByteBuffer.allocateDirect(4 * merge.outBytes(each))));
        }
        merge.finish();
        return all.array();
    }

    private static List<String> names(Path folder) throws IOException {
        try (var files = Files.list(folder)) {
            return files.map(file -> file.getFileName().toString()).toList();
        }
    }

    private static List<String> plus(List<String> names, String name) {
        var all = new java.util.ArrayList<>(names);
        all.add(name);
        return all;
    }
}
