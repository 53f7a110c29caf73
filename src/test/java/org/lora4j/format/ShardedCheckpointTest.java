package org.lora4j.format;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.format.SafetensorsException.Defect;

class ShardedCheckpointTest {
    @TempDir
    Path folder;

    private static ShardedCheckpointWriter writer(long maxShardBytes) {
        ShardedCheckpointWriter writer = new ShardedCheckpointWriter(Map.of("format", "pt"), maxShardBytes);
        for (int i = 0; i < 4; i++) {
            byte value = (byte) (i + 1);
            writer.add("w" + i, DType.U8, new long[] {2, i + 1}, out -> {
                byte[] data = new byte[2 * value];
                java.util.Arrays.fill(data, value);
                out.write(ByteBuffer.wrap(data));
            });
        }
        return writer;
    }

    private void index(String weightMap) throws IOException {
        Files.writeString(folder.resolve(ShardedCheckpoint.INDEX_FILE), "{\"weight_map\": " + weightMap + "}");
    }

    private void assertDefect(Defect defect, String... parts) {
        assertThatThrownBy(() -> ShardedCheckpoint.open(folder))
                .isInstanceOfSatisfying(
                        SafetensorsException.class,
                        e -> assertThat(e.defect()).as(e.getMessage()).isEqualTo(defect))
                .hasMessageContaining(ShardedCheckpoint.INDEX_FILE)
                .satisfies(e -> assertThat(List.of(parts))
                        .allSatisfy(part -> assertThat(e).hasMessageContaining(part)));
    }

    private void shard(String name, String... tensors) throws IOException {
        SafetensorsWriter writer = new SafetensorsWriter(Map.of());
        for (String tensor : tensors) {
            writer.add(tensor, DType.U8, new long[0], out -> out.write(ByteBuffer.allocate(1)));
        }
        writer.write(folder.resolve(name));
    }

    @Test
    void shardsAreFilledInOrderUpToTheLimit() throws IOException {
        // 2, 4, 6 and 8 bytes: the first two fit together, the last is larger than a shard may be.
        assertThat(writer(7).write(folder))
                .extracting(path -> path.getFileName().toString())
                .containsExactly(
                        "model-00001-of-00003.safetensors",
                        "model-00002-of-00003.safetensors",
                        "model-00003-of-00003.safetensors",
                        "model.safetensors.index.json");
        assertThat(folder.resolve(ShardedCheckpoint.INDEX_FILE)).hasContent("""
                {
                  "metadata": {
                    "total_size": 20
                  },
                  "weight_map": {
                    "w0": "model-00001-of-00003.safetensors",
                    "w1": "model-00001-of-00003.safetensors",
                    "w2": "model-00002-of-00003.safetensors",
                    "w3": "model-00003-of-00003.safetensors"
                  }
                }
                """);
        assertReads(folder);
        assertReads(folder.resolve(ShardedCheckpoint.INDEX_FILE));
    }

    private static void assertReads(Path path) throws IOException {
        try (ShardedCheckpoint checkpoint = ShardedCheckpoint.open(path)) {
            assertThat(checkpoint.tensors()).containsOnlyKeys("w0", "w1", "w2", "w3");
            for (byte i = 0; i < 4; i++) {
                ShardedCheckpoint.Location location = checkpoint.tensor("w" + i);
                assertThat(location.info().shape()).containsExactly(2, i + 1);
                assertThat(location.file().read("w" + i).get(1)).isEqualTo((byte) (i + 1));
            }
            assertThatThrownBy(() -> checkpoint.tensor("w4")).hasMessageContaining("\"w4\"");
        }
    }

    @Test
    void whatFitsOneShardIsOneFileWithoutIndex() throws IOException {
        assertThat(writer(20).write(folder)).containsExactly(folder.resolve("model.safetensors"));
        assertThat(folder.resolve(ShardedCheckpoint.INDEX_FILE)).doesNotExist();
        assertReads(folder);
        assertReads(folder.resolve("model.safetensors"));
    }

    @Test
    void aFolderThatHoldsACheckpointIsNotWrittenTo() throws IOException {
        writer(7).write(folder);
        assertThatThrownBy(() -> writer(20).write(folder)).isInstanceOf(FileAlreadyExistsException.class);
        assertThatThrownBy(() -> writer(7).write(folder)).isInstanceOf(FileAlreadyExistsException.class);
    }

    @Test
    void aFailedWriteLeavesNoShard() {
        ShardedCheckpointWriter writer = writer(7).add("bad", DType.U8, new long[] {7}, out -> {
            throw new IOException("disk full");
        });
        assertThatThrownBy(() -> writer.write(folder)).hasMessage("disk full");
        assertThat(folder).isEmptyDirectory();
    }

    @Test
    void aTensorIsAddedOnce() {
        assertThatThrownBy(() -> writer(7).add("w0", DType.U8, new long[0], out -> {}))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessageContaining("\"w0\"");
    }

    @Test
    void anEmptyFolderIsNoCheckpoint() {
        assertThatThrownBy(() -> ShardedCheckpoint.open(folder))
                .isInstanceOf(NoSuchFileException.class)
                .hasMessageContaining("model.safetensors.index.json");
    }

    @ParameterizedTest
    @ValueSource(
            strings = {"[]", "{\"w\": 1}", "{\"w\": null}", "{\"w\": \"a.safetensors\", \"w\": \"a.safetensors\"}", "{"
            })
    void indexMalformed(String weightMap) throws IOException {
        shard("a.safetensors", "w");
        index(weightMap);
        assertDefect(Defect.INDEX_MALFORMED);
    }

    @ParameterizedTest
    @ValueSource(
            strings = {
                "../a.safetensors",
                "/etc/a.safetensors",
                "sub/a.safetensors",
                "sub\\\\a.safetensors",
                "C:a.safetensors",
                ".a.safetensors",
                "a.bin",
                "",
                "..",
                "a\\u0000.safetensors"
            })
    void indexShardName(String shard) throws IOException {
        shard("a.safetensors", "w");
        index("{\"w\": \"" + shard + "\"}");
        assertDefect(Defect.INDEX_SHARD_NAME);
    }

    @Test
    void indexShardMissing() throws IOException {
        shard("a.safetensors", "w");
        index("{\"w\": \"a.safetensors\", \"v\": \"b.safetensors\"}");
        assertDefect(Defect.INDEX_SHARD_MISSING, "b.safetensors");
    }

    @Test
    void indexTensorMissing() throws IOException {
        shard("a.safetensors", "w");
        index("{\"w\": \"a.safetensors\", \"v\": \"a.safetensors\"}");
        assertDefect(Defect.INDEX_TENSOR_MISSING, "\"v\"", "a.safetensors");
    }

    @Test
    void indexTensorUnlisted() throws IOException {
        shard("a.safetensors", "w", "v");
        index("{\"w\": \"a.safetensors\"}");
        assertDefect(Defect.INDEX_TENSOR_UNLISTED, "\"v\"", "a.safetensors");
    }

    @Test
    void aTensorInTwoShardsIsUnlistedInOne() throws IOException {
        shard("a.safetensors", "w");
        shard("b.safetensors", "v", "w");
        index("{\"w\": \"a.safetensors\", \"v\": \"b.safetensors\"}");
        assertDefect(Defect.INDEX_TENSOR_UNLISTED, "\"w\"", "b.safetensors");
    }

    @Test
    void aDefectiveShardIsNamed() throws IOException {
        Files.write(folder.resolve("a.safetensors"), new byte[3]);
        index("{\"w\": \"a.safetensors\"}");
        assertThatThrownBy(() -> ShardedCheckpoint.open(folder))
                .isInstanceOfSatisfying(
                        SafetensorsException.class, e -> assertThat(e.defect()).isEqualTo(Defect.FILE_TOO_SHORT))
                .hasMessageContaining("a.safetensors");
    }
}
