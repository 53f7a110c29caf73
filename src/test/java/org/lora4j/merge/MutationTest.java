package org.lora4j.merge;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.fail;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.lora4j.config.LoraConfig;
import org.lora4j.format.DType;

/**
 * Damages one file at a time and runs what reads it. It fails with a message that names a file or tensor and leaves nothing
 * behind, or what it wrote is exactly what its manifest says. {@code -Dlora4j.mutations} changes how many there are.
 */
class MutationTest {
    private static final int MUTATIONS = Integer.getInteger("lora4j.mutations", 2000);

    @TempDir(factory = MemoryTempDir.class)
    Path folder;

    private final Random random = new Random(3);
    private final TinyCheckpoint tiny = new TinyCheckpoint(1, false);
    private final Map<String, Integer> counts = new TreeMap<>();
    private final List<String> unclear = new ArrayList<>();
    private MergeOptions options;
    private Map<String, String> original;

    @BeforeEach
    void write() throws IOException {
        Path checkpoint = tiny.write(folder.resolve("base"), DType.BF16, 9_000, 1);
        var config = LoraConfig.builder().r(3).loraAlpha(7).rankPattern(Map.of("k_proj", 2));
        Path a = tiny.adapter(folder.resolve("a"), DType.F32, config, 2, "q_proj", "k_proj", "down_proj");
        options = MergeOptions.of(checkpoint, new WeightedAdapter(a, 0.5)).withResidual(folder.resolve("residual"));
        CheckpointMerge.merge(options, folder.resolve("merged"), false, MergeProgress.NONE);
        original = SafetyTest.hashes(checkpoint);
        options = options.withResidual(null);
    }

    private interface Action {
        void run() throws IOException;
    }

    @Test
    void damagedFilesAreRefusedOrHarmless() throws IOException {
        Path base = folder.resolve("base");
        Path merged = folder.resolve("merged");
        List<Path> inputs = new ArrayList<>(files(base));
        inputs.addAll(files(folder.resolve("a")));
        inputs.removeIf(file -> file.endsWith("tokenizer.json") || file.endsWith("generation_config.json"));
        List<Path> kept = files(folder.resolve("residual"));
        kept.addAll(files(folder.resolve("a")));
        kept.addAll(files(merged));
        Path undo = base.resolve(".lora4j-undo");
        for (int i = 0; i < MUTATIONS; i++) {
            switch (i % 8) {
                case 0, 1, 2, 3 -> damaged("merge", pick(inputs), this::merge);
                case 4, 5 -> damaged("unmerge", pick(kept), this::unmerge);
                case 6 -> damaged("verify", pick(files(merged)), this::verify);
                default -> {
                    boolean inPlace = random.nextBoolean();
                    interrupt(inPlace);
                    if (inPlace) {
                        damaged("rollback", pick(files(undo)), () -> CheckpointMerge.rollBack(base));
                        CheckpointMerge.rollBack(base);
                        assertThat(SafetyTest.hashes(base)).isEqualTo(original);
                    } else {
                        Path working = folder.resolve("out.merging");
                        damaged("resume", working.resolve(Journal.FILE_NAME), this::resume);
                        CheckpointMerge.delete(working);
                        CheckpointMerge.delete(folder.resolve("out"));
                    }
                }
            }
        }
        System.out.println("mutations: " + counts);
        assertThat(unclear).isEmpty();
        assertThat(counts.values().stream().mapToInt(Integer::intValue).sum()).isEqualTo(MUTATIONS);
        assertThat(counts.get("merge refused")).isGreaterThan(MUTATIONS / 8);
        assertThat(SafetyTest.hashes(base)).isEqualTo(original);
    }

    private void merge() throws IOException {
        Path out = folder.resolve("out");
        try {
            MergeManifest manifest = CheckpointMerge.merge(options, out, false, MergeProgress.NONE);
            assertThat(Verification.of(out, manifest, MergeProgress.NONE).differences())
                    .isEmpty();
        } finally {
            boolean wrote = Files.exists(out);
            CheckpointMerge.delete(out);
            Path working = folder.resolve("out.merging");
            assertThat(wrote && Files.exists(working)).isFalse();
            CheckpointMerge.delete(working);
        }
    }

    private void resume() throws IOException {
        Path out = folder.resolve("out");
        MergeManifest manifest = CheckpointMerge.merge(options, out, true, MergeProgress.NONE);
        assertThat(Verification.of(out, manifest, MergeProgress.NONE).differences())
                .isEmpty();
    }

    /** The original comes back or nothing does: what is restored was compared with hashes. */
    private void unmerge() throws IOException {
        Path back = folder.resolve("back");
        try {
            CheckpointUnmerge.unmerge(
                    folder.resolve("merged"), folder.resolve("residual"), List.of(), back, MergeProgress.NONE);
            Map<String, String> restored = SafetyTest.hashes(back);
            restored.keySet().retainAll(weights(original).keySet());
            assertThat(restored).isEqualTo(weights(original));
        } finally {
            CheckpointMerge.delete(back);
            assertThat(folder.resolve("back.unmerging")).doesNotExist();
        }
    }

    private static Map<String, String> weights(Map<String, String> hashes) {
        Map<String, String> weights = new TreeMap<>(hashes);
        weights.keySet().removeIf(name -> !name.endsWith(".safetensors"));
        return weights;
    }

    private void verify() throws IOException {
        Path merged = folder.resolve("merged");
        Verification found = Verification.of(merged, MergeManifest.read(merged), MergeProgress.NONE);
        if (!found.isEqual()) {
            throw new IOException(String.join("; ", found.differences()));
        }
    }

    /** Leaves an interrupted merge, as a process does that died. */
    private void interrupt(boolean inPlace) throws IOException {
        int[] left = {8};
        MergeProgress dying = (done, total, tensor) -> {
            if (left[0]-- == 0) {
                throw new StackOverflowError();
            }
        };
        try {
            if (inPlace) {
                left[0] = 1;
                CheckpointMerge.mergeInPlace(options, false, dying);
            } else {
                CheckpointMerge.merge(options, folder.resolve("out"), false, dying);
            }
            fail("the merge was not interrupted");
        } catch (StackOverflowError expected) {
            // The files are as the process left them.
        }
    }

    private void damaged(String what, Path file, Action action) throws IOException {
        byte[] good = Files.readAllBytes(file);
        var modified = Files.getLastModifiedTime(file);
        byte[] bad = mutated(good, file.toString().endsWith(".json"));
        Files.write(file, bad);
        String outcome = "done";
        try {
            action.run();
        } catch (IOException e) {
            outcome = "refused";
            String message = String.valueOf(e.getMessage());
            boolean names = message.contains("/")
                    || message.contains("\"")
                    || message.contains(".safetensors")
                    || message.contains(".json");
            if (!names || message.length() < 20) {
                unclear.add(what + " of " + file.getFileName() + ": " + e);
            }
        } catch (RuntimeException e) {
            outcome = "failed";
            unclear.add(what + " of " + file.getFileName() + ": " + e + " at " + e.getStackTrace()[0]);
        }
        counts.merge(what + " " + outcome, 1, Integer::sum);
        if (Files.exists(file.getParent())) {
            Files.write(file, good);
            Files.setLastModifiedTime(file, modified);
        }
    }

    private byte[] mutated(byte[] good, boolean text) {
        byte[] bytes = good.clone();
        int at = random.nextInt(Math.max(1, bytes.length));
        // Headers are at the beginning; most damage is more telling there.
        int early = random.nextBoolean() ? at : random.nextInt(Math.max(1, Math.min(bytes.length, 1500)));
        switch (random.nextInt(text ? 8 : 6)) {
            case 0 -> bytes[early] ^= (byte) (1 << random.nextInt(8));
            case 1 -> bytes[early] = (byte) random.nextInt();
            case 2 -> bytes = Arrays.copyOf(bytes, at);
            case 3 -> bytes = Arrays.copyOf(bytes, bytes.length + 1 + random.nextInt(9));
            case 4 -> System.arraycopy(good, at, bytes, early, Math.min(40, bytes.length - Math.max(at, early)));
            case 5 -> Arrays.fill(bytes, early, Math.min(bytes.length, early + 1 + random.nextInt(16)), (byte) 0);
            default -> {
                String all = new String(good, StandardCharsets.UTF_8);
                List<String> tokens =
                        List.of("null", "-1", "1e400", "[]", "{}", "\"x\"", "9223372036854775808", "true");
                List<java.util.regex.MatchResult> values = java.util.regex.Pattern.compile(
                                "(?<=: )(\"[^\"]*\"|[-\\d.eE]+|true|false|null)")
                        .matcher(all)
                        .results()
                        .toList();
                if (!values.isEmpty()) {
                    var value = values.get(random.nextInt(values.size()));
                    all = all.substring(0, value.start())
                            + tokens.get(random.nextInt(tokens.size()))
                            + all.substring(value.end());
                }
                bytes = all.getBytes(StandardCharsets.UTF_8);
            }
        }
        return bytes;
    }

    private Path pick(List<Path> files) {
        return files.get(random.nextInt(files.size()));
    }

    private static List<Path> files(Path folder) throws IOException {
        try (var files = Files.list(folder)) {
            return new ArrayList<>(files.filter(Files::isRegularFile).sorted().toList());
        }
    }
}
