package org.lora4j.merge;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.config.LoraConfig;
import org.lora4j.format.DType;

/**
 * Kills the command line at random moments of a merge and continues: the files are always those of a merge nobody
 * disturbed. {@code -Dlora4j.kills=50} kills more often; {@code scripts/kill-test} does.
 */
class KillTest {
    private static final int KILLS = Integer.getInteger("lora4j.kills", 4);

    /** What is merged, and how long the part takes in which files are written. */
    private static MergeOptions options;

    private static long milliseconds;

    @TempDir
    static Path folder;

    @BeforeAll
    static void write() throws IOException {
        // 150 MB in four shards.
        TinyCheckpoint checkpoint = new TinyCheckpoint(6, false, 40);
        Path base = checkpoint.write(folder.resolve("base"), DType.BF16, 40_000_000, 1);
        Path adapter = checkpoint.adapter(
                folder.resolve("a"),
                DType.F32,
                LoraConfig.builder().r(3).loraAlpha(7),
                2,
                "q_proj",
                "v_proj",
                "down_proj");
        options = MergeOptions.of(base, new WeightedAdapter(adapter, 0.5));
        CheckpointMerge.merge(options, folder.resolve("warm"), false, MergeProgress.NONE);
        CheckpointMerge.delete(folder.resolve("warm"));
        long start = System.nanoTime();
        CheckpointMerge.merge(options, folder.resolve("expected"), false, MergeProgress.NONE);
        milliseconds = TimeUnit.NANOSECONDS.toMillis(System.nanoTime() - start);
    }

    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void aKilledMergeContinuesToTheSameBytes(boolean inPlace) throws Exception {
        Map<String, String> expected = SafetyTest.hashes(folder.resolve("expected"));
        expected.remove(MergeManifest.FILE_NAME);
        Random random = new Random(inPlace ? 7 : 5);
        int interrupted = 0;
        int merges = 0;
        for (int i = 0; interrupted < (KILLS + 1) / 2; i++) {
            assertThat(i).as("merges begun").isLessThan(4 * KILLS + 8);
            Path result = folder.resolve("out" + i + inPlace);
            Path checkpoint = options.checkpoint();
            if (inPlace) {
                CheckpointMerge.delete(result);
                copy(options.checkpoint(), result);
                checkpoint = result;
            }
            Path writing =
                    inPlace ? result.resolve(".lora4j-undo") : result.resolveSibling(result.getFileName() + ".merging");
            interrupted += killed(arguments(checkpoint, result, inPlace, false), writing, random) ? 1 : 0;
            // Sometimes the one that continues is killed as well.
            if (random.nextInt(3) == 0) {
                interrupted += killed(arguments(checkpoint, result, inPlace, true), writing, random) ? 1 : 0;
            }
            Process process = start(arguments(checkpoint, result, inPlace, true));
            assertThat(process.waitFor(120, TimeUnit.SECONDS)).isTrue();
            assertThat(process.exitValue())
                    .as(Files.readString(folder.resolve("output")))
                    .isZero();
            Map<String, String> found = SafetyTest.hashes(result);
            found.remove(MergeManifest.FILE_NAME);
            assertThat(found).as("kill %d", i).isEqualTo(expected);
            assertThat(Verification.of(result, MergeManifest.read(result), MergeProgress.NONE)
                            .isEqual())
                    .isTrue();
            CheckpointMerge.delete(result);
            merges++;
        }
        System.out.println((inPlace ? "in place" : "into a folder") + ": " + merges + " merges, " + interrupted
                + " kills while they ran, all continued to the same bytes");
    }

    /** Runs the command and kills it some time after it has begun to write; whether it was still running. */
    private static boolean killed(List<String> arguments, Path writing, Random random) throws Exception {
        Process process = start(arguments);
        while (process.isAlive() && !Files.exists(writing)) {
            Thread.sleep(1);
        }
        Thread.sleep(random.nextInt((int) Math.max(2, 3 * milliseconds / 2)));
        boolean running = process.isAlive();
        process.destroyForcibly();
        assertThat(process.waitFor(30, TimeUnit.SECONDS)).isTrue();
        return running;
    }

    private static List<String> arguments(Path checkpoint, Path result, boolean inPlace, boolean resume) {
        List<String> arguments = new ArrayList<>(List.of("merge", checkpoint.toString()));
        for (WeightedAdapter adapter : options.adapters()) {
            arguments.addAll(List.of("-a", adapter.folder() + "=" + adapter.weight()));
        }
        arguments.addAll(inPlace ? List.of("--in-place") : List.of("-o", result.toString()));
        if (resume) {
            arguments.add("--resume");
        }
        return arguments;
    }

    private static Process start(List<String> arguments) throws IOException {
        List<String> command = new ArrayList<>(List.of(
                Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "-Xmx512m",
                "-cp",
                System.getProperty("java.class.path"),
                "org.lora4j.cli.Main"));
        command.addAll(arguments);
        File output = folder.resolve("output").toFile();
        return new ProcessBuilder(command)
                .redirectErrorStream(true)
                .redirectOutput(output)
                .start();
    }

    private static void copy(Path from, Path to) throws IOException {
        Files.createDirectories(to);
        try (var files = Files.list(from)) {
            for (Path file : files.toList()) {
                Files.copy(file, to.resolve(file.getFileName()));
            }
        }
    }
}
