package org.lora4j.merge;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.io.RandomAccessFile;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.FileTime;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.config.LoraConfig;
import org.lora4j.format.DType;
import org.lora4j.format.FormatException;

/** Merges that are interrupted, fail, or find their inputs changed. */
class SafetyTest {
    @TempDir(factory = MemoryTempDir.class)
    Path folder;

    private final TinyCheckpoint tiny = new TinyCheckpoint(3, false);
    private Path checkpoint;
    private Path out;
    private Path working;
    private MergeOptions options;

    /** Stands for a process that dies while it writes a tile. */
    private static final class Died extends Error {
        private static final long serialVersionUID = 1;
    }

    @BeforeEach
    void write() throws IOException {
        checkpoint = tiny.write(folder.resolve("base"), DType.BF16, 9_000, 1);
        Path adapter = tiny.adapter(
                folder.resolve("a"), DType.F32, LoraConfig.builder().r(3).loraAlpha(7), 2, "q_proj", "down_proj");
        options = MergeOptions.of(checkpoint, new WeightedAdapter(adapter, 1));
        out = folder.resolve("out");
        working = folder.resolve("out.merging");
    }

    private static MergeProgress dying(int tiles) {
        int[] left = {tiles};
        return (done, total, tensor) -> {
            if (left[0]-- == 0) {
                throw new Died();
            }
        };
    }

    static Map<String, String> hashes(Path folder) throws IOException {
        Map<String, String> hashes = new TreeMap<>();
        try (var files = Files.list(folder)) {
            for (Path file : files.toList()) {
                hashes.put(file.getFileName().toString(), Hash.of(file));
            }
        }
        return hashes;
    }

    private Map<String, String> expected() throws IOException {
        CheckpointMerge.merge(options, folder.resolve("expected"), false, MergeProgress.NONE);
        return hashes(folder.resolve("expected"));
    }

    @ParameterizedTest
    @ValueSource(ints = {0, 1, 4, 9, 17, 25})
    void anInterruptedMergeContinuesToTheSameBytes(int tiles) throws IOException {
        Map<String, String> expected = expected();
        assertThatThrownBy(() -> CheckpointMerge.merge(options, out, false, dying(tiles)))
                .isInstanceOf(Died.class);
        assertThat(out).doesNotExist();
        assertThat(working).exists();
        assertThatThrownBy(() -> CheckpointMerge.merge(options, out, false, MergeProgress.NONE))
                .isInstanceOf(FileAlreadyExistsException.class)
                .hasMessageContaining("--resume");
        // What the journal says is finished is not written again.
        List<String> written = new ArrayList<>();
        long finished =
                Files.readString(working.resolve(Journal.FILE_NAME)).lines().count() - 1;
        CheckpointMerge.merge(options, out, true, (done, total, tensor) -> written.add(tensor));
        assertThat(hashes(out)).isEqualTo(expected);
        assertThat(working).doesNotExist();
        assertThat(written.size() < tiny.shapes.size()).isEqualTo(finished > 0);
        // And once more, when all is done.
        CheckpointMerge.merge(options, out, true, MergeProgress.NONE);
        assertThat(hashes(out)).isEqualTo(expected);
    }

    @Test
    void aLineOfTheJournalThatWasCutDoesNotCount() throws IOException {
        Map<String, String> expected = expected();
        assertThatThrownBy(() -> CheckpointMerge.merge(options, out, false, dying(20)))
                .isInstanceOf(Died.class);
        Path journal = working.resolve(Journal.FILE_NAME);
        String text = Files.readString(journal);
        Files.writeString(journal, text.substring(0, text.length() - 10));
        CheckpointMerge.merge(options, out, true, MergeProgress.NONE);
        assertThat(hashes(out)).isEqualTo(expected);
    }

    @Test
    void otherInputsDoNotContinueAMerge() throws IOException {
        assertThatThrownBy(() -> CheckpointMerge.merge(options, out, false, dying(20)))
                .isInstanceOf(Died.class);
        assertThatThrownBy(() -> CheckpointMerge.merge(options.withSeed(1), out, true, MergeProgress.NONE))
                .isInstanceOf(FormatException.class)
                .hasMessageContaining("other inputs or options");
        Path shard = checkpoint.resolve(firstShard());
        Files.setLastModifiedTime(shard, FileTime.fromMillis(1_000_000));
        assertThatThrownBy(() -> CheckpointMerge.merge(options, out, true, MergeProgress.NONE))
                .hasMessageContaining("were changed since");
        assertThat(working).exists();
    }

    private String firstShard() throws IOException {
        try (var files = Files.list(checkpoint)) {
            return files.map(file -> file.getFileName().toString())
                    .filter(name -> name.endsWith(".safetensors"))
                    .sorted()
                    .findFirst()
                    .orElseThrow();
        }
    }

    @Test
    void aFullDiskKeepsWhatIsThereAndTheMergeContinues() throws IOException {
        Map<String, String> expected = expected();
        Files.createDirectories(working);
        Path second = working.resolve("model-00002-of-" + firstShard().substring(15) + ".part");
        // Writing to this device fails as on a full disk.
        Files.createSymbolicLink(second, Path.of("/dev/full"));
        assertThatThrownBy(() -> CheckpointMerge.merge(options, out, false, MergeProgress.NONE))
                .isInstanceOf(IOException.class)
                .hasMessageContaining("No space left on device")
                .hasMessageContaining("--resume");
        assertThat(out).doesNotExist();
        Files.delete(second);
        CheckpointMerge.merge(options, out, true, MergeProgress.NONE);
        assertThat(hashes(out)).isEqualTo(expected);
    }

    @Test
    void aFolderThatCannotBeWrittenIsNamed() throws IOException {
        Path file = Files.createFile(folder.resolve("file"));
        assertThatThrownBy(() -> CheckpointMerge.merge(options, file.resolve("out"), false, MergeProgress.NONE))
                .isInstanceOf(IOException.class)
                .hasMessageContaining(file + "/out.merging: cannot be written");
        assertThatThrownBy(() -> CheckpointMerge.merge(options, checkpoint, false, MergeProgress.NONE))
                .isInstanceOf(FileAlreadyExistsException.class)
                .hasMessageContaining("name a new or empty folder");
    }

    @Test
    void anInputThatChangesMeanwhileIsNoticed() throws IOException {
        Path shard = checkpoint.resolve(firstShard());
        boolean[] changed = {false};
        MergeProgress change = (done, total, tensor) -> {
            if (!changed[0]) {
                changed[0] = true;
                try (RandomAccessFile file = new RandomAccessFile(shard.toFile(), "rw")) {
                    file.seek(file.length() - 1);
                    file.write(7);
                    Files.setLastModifiedTime(shard, FileTime.fromMillis(5));
                } catch (IOException e) {
                    throw new java.io.UncheckedIOException(e);
                }
            }
        };
        assertThatThrownBy(() -> CheckpointMerge.merge(options, out, false, change))
                .isInstanceOf(FormatException.class)
                .hasMessageContaining("was changed while it was read");
        assertThat(out).doesNotExist();
        assertThat(working).doesNotExist();
    }

    @Test
    void anInputThatIsCutMeanwhileIsNoticed() throws IOException {
        MergeProgress cut = (done, total, tensor) -> {
            try (var files = Files.list(checkpoint)) {
                for (Path file :
                        files.filter(f -> f.toString().endsWith(".safetensors")).toList()) {
                    try (RandomAccessFile open = new RandomAccessFile(file.toFile(), "rw")) {
                        open.setLength(Math.min(open.length(), 2000));
                    }
                }
            } catch (IOException e) {
                throw new java.io.UncheckedIOException(e);
            }
        };
        assertThatThrownBy(() -> CheckpointMerge.merge(options, out, false, cut))
                .isInstanceOf(FormatException.class)
                .hasMessageMatching("(?s).*(ended at byte|was changed while it was read).*");
        assertThat(out).doesNotExist();
    }

    @Test
    void inPlaceChangesOnlyTheTensorsOfTheAdapter() throws IOException {
        Map<String, String> expected = expected();
        CheckpointMerge.mergeInPlace(options, false, MergeProgress.NONE);
        Map<String, String> found = hashes(checkpoint);
        expected.remove(MergeManifest.FILE_NAME);
        found.remove(MergeManifest.FILE_NAME);
        assertThat(found).isEqualTo(expected);
        MergeManifest manifest = MergeManifest.read(checkpoint);
        assertThat(manifest.complete()).isFalse();
        Verification verified = Verification.of(checkpoint, manifest, MergeProgress.NONE);
        assertThat(verified.isEqual()).isTrue();
        assertThat(verified.tensors()).isEqualTo(6);
        assertThat(verified.uncovered()).isPositive();
    }

    @ParameterizedTest
    @ValueSource(ints = {0, 1, 3, 5})
    void inPlaceAnInterruptedMergeIsTakenBackOrDoneAgain(int tiles) throws IOException {
        Map<String, String> before = hashes(checkpoint);
        Map<String, String> expected = expected();
        assertThatThrownBy(() -> CheckpointMerge.mergeInPlace(options, false, dying(tiles)))
                .isInstanceOf(Died.class);
        // Errors stand for a dead process: nothing was cleaned up.
        assertThatThrownBy(() -> CheckpointMerge.plan(options))
                .isInstanceOf(FormatException.class)
                .hasMessageContaining("--rollback");
        assertThat(CheckpointMerge.rollBack(checkpoint)).isTrue();
        assertThat(hashes(checkpoint)).isEqualTo(before);
        assertThat(CheckpointMerge.rollBack(checkpoint)).isFalse();
        assertThatThrownBy(() -> CheckpointMerge.mergeInPlace(options, false, dying(tiles)))
                .isInstanceOf(Died.class);
        CheckpointMerge.mergeInPlace(options, true, MergeProgress.NONE);
        Map<String, String> found = hashes(checkpoint);
        expected.remove(MergeManifest.FILE_NAME);
        found.remove(MergeManifest.FILE_NAME);
        assertThat(found).isEqualTo(expected);
    }

    @Test
    void inPlaceAFinishedMergeIsNotDoneTwice() throws IOException {
        CheckpointMerge.mergeInPlace(options, false, MergeProgress.NONE);
        Map<String, String> once = hashes(checkpoint);
        // The process died between its last write and its exit, and the merge is continued.
        Files.createDirectories(checkpoint.resolve(".lora4j-undo"));
        MergeManifest again = CheckpointMerge.mergeInPlace(options, true, MergeProgress.NONE);
        assertThat(hashes(checkpoint)).isEqualTo(once);
        assertThat(again.json()).isEqualTo(MergeManifest.read(checkpoint).json());
        // Another merge is none that was finished.
        Path other = tiny.adapter(
                folder.resolve("b"), DType.F32, LoraConfig.builder().r(2), 5, "q_proj");
        MergeOptions second = MergeOptions.of(checkpoint, new WeightedAdapter(other, 1));
        CheckpointMerge.mergeInPlace(second, true, MergeProgress.NONE);
        Map<String, String> twice = hashes(checkpoint);
        assertThat(twice).isNotEqualTo(once);
        // Taken back, the manifest is the earlier one's again.
        assertThatThrownBy(() -> CheckpointMerge.mergeInPlace(options, false, dying(1)))
                .isInstanceOf(Died.class);
        Files.writeString(checkpoint.resolve(MergeManifest.FILE_NAME), "{}");
        CheckpointMerge.rollBack(checkpoint);
        assertThat(hashes(checkpoint)).isEqualTo(twice);
    }

    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void aResidualThatWasFinishedJustBeforeTheEndIsNotInTheWay(boolean inPlace) throws IOException {
        Map<String, String> before = hashes(checkpoint);
        Path residual = folder.resolve("residual");
        MergeOptions kept = options.withResidual(residual);
        if (inPlace) {
            CheckpointMerge.mergeInPlace(kept, false, MergeProgress.NONE);
            CheckpointUnmerge.unmerge(checkpoint, residual, List.of(), folder.resolve("back"), MergeProgress.NONE);
            CheckpointMerge.delete(checkpoint);
            Files.move(folder.resolve("back"), checkpoint);
            CheckpointMerge.mergeInPlace(kept, true, MergeProgress.NONE);
        } else {
            CheckpointMerge.merge(kept, out, false, MergeProgress.NONE);
            CheckpointMerge.delete(out);
            assertThatThrownBy(() -> CheckpointMerge.merge(kept, out, false, MergeProgress.NONE))
                    .hasMessageContaining("name a new residual folder");
            CheckpointMerge.delete(working);
            CheckpointMerge.merge(kept, out, true, MergeProgress.NONE);
        }
        CheckpointMerge.delete(folder.resolve("back"));
        CheckpointUnmerge.unmerge(
                inPlace ? checkpoint : out, residual, List.of(), folder.resolve("back"), MergeProgress.NONE);
        assertThat(hashes(folder.resolve("back"))).isEqualTo(before);
    }

    @Test
    void inPlaceAFailureLeavesTheCheckpointAsItWas() throws IOException {
        Map<String, String> before = hashes(checkpoint);
        assertThatThrownBy(() -> CheckpointMerge.mergeInPlace(options.withDtype(DType.F32), false, MergeProgress.NONE))
                .isInstanceOf(FormatException.class)
                .hasMessageContaining("cannot be done in place");
        assertThat(hashes(checkpoint)).isEqualTo(before);
        int[] left = {3};
        MergeProgress failing = (done, total, tensor) -> {
            if (left[0]-- == 0) {
                throw new IllegalStateException("a failure");
            }
        };
        assertThatThrownBy(() -> CheckpointMerge.mergeInPlace(options, false, failing))
                .hasMessage("a failure");
        assertThat(hashes(checkpoint)).isEqualTo(before);
    }

    @Test
    void verifyFindsEveryDifference() throws IOException {
        CheckpointMerge.merge(options, out, false, MergeProgress.NONE);
        MergeManifest manifest = MergeManifest.read(out);
        Path shard = out.resolve(firstShard());
        byte[] bytes = Files.readAllBytes(shard);
        bytes[bytes.length - 1] ^= 1;
        Files.write(shard, bytes);
        Files.writeString(out.resolve("config.json"), "{}");
        Files.delete(out.resolve("tokenizer.json"));
        assertThat(Verification.of(out, manifest, MergeProgress.NONE).differences())
                .hasSize(3)
                .anyMatch(text -> text.contains(firstShardName(shard)) && text.contains("has other values"))
                .contains("config.json has other bytes", "tokenizer.json is missing");
        Files.write(shard, java.util.Arrays.copyOf(bytes, bytes.length - 1));
        assertThat(Verification.of(out, manifest, MergeProgress.NONE).differences())
                .anyMatch(text -> text.contains(firstShardName(shard)) && text.contains("bytes, not"));
    }

    private static String firstShardName(Path shard) {
        return shard.getFileName().toString();
    }
}
