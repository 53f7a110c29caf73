package org.lora4j.cli;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** The verb {@code train} as a user calls it, on the demo's base. */
class TrainCommandTest {
    private static final String DEMO = "src/test/resources/demo/";

    private final StringWriter out = new StringWriter();
    private final StringWriter err = new StringWriter();

    @TempDir
    Path folder;

    private Path words;
    private Path verses;

    @BeforeEach
    void cutData() throws IOException {
        words = head("definitions", 24);
        verses = head("verses", 12);
    }

    private Path head(String task, int lines) throws IOException {
        List<String> all = Files.readAllLines(Path.of(DEMO + "tasks/" + task + ".train.jsonl"));
        return Files.write(folder.resolve(task + ".jsonl"), all.subList(0, lines));
    }

    private int run(String... arguments) {
        List<String> all = new ArrayList<>(List.of("train"));
        all.addAll(List.of(arguments));
        return Main.run(new PrintWriter(out, true), new PrintWriter(err, true), all.toArray(new String[0]));
    }

    private Path yaml(String text) throws IOException {
        return Files.writeString(folder.resolve("train.yaml"), text);
    }

    private String common(Path output) {
        return """
                base: %sbase
                data: %s
                out: %s
                targets: [q_proj, v_proj]
                batch-size: 4
                max-length: 48
                steps: 4
                lr: 0.003
                schedule: COSINE
                """.formatted(DEMO, words, output);
    }

    private static byte[] adapter(Path folder) throws IOException {
        return Files.readAllBytes(folder.resolve("adapter").resolve("adapter_model.safetensors"));
    }

    @Test
    void filesAndOptionsSayTheSame() throws IOException {
        Path byFile = folder.resolve("file");
        assertThat(run("--config", yaml(common(byFile) + "steps: 9\n").toString(), "--steps", "4"))
                .as(err.toString())
                .isEqualTo(2);
        assertThat(err.toString()).contains("line 10").containsIgnoringCase("duplicate");
        assertThat(run(
                        "--config",
                        yaml(common(byFile).replace("steps: 4", "steps: 9")).toString(),
                        "--steps",
                        "4"))
                .as(err.toString())
                .isZero();
        Path byOptions = folder.resolve("options");
        assertThat(run(
                        "--base=" + DEMO + "base",
                        "--data=" + words,
                        "--out=" + byOptions,
                        "--targets=q_proj,v_proj",
                        "--batch-size=4",
                        "--max-length=48",
                        "--steps=4",
                        "--lr=0.003",
                        "--schedule=cosine",
                        "--stream",
                        "--paths"))
                .as(err.toString())
                .isZero();
        assertThat(adapter(byOptions)).isEqualTo(adapter(byFile));
        assertThat(byFile).isDirectoryContaining("glob:**checkpoint-4").isDirectoryContaining("glob:**report.html");
        assertThat(out.toString())
                .contains("fused  model.layers.1.self_attn.v_proj")
                .contains("factors_only  model.layers.0.self_attn.q_proj  (its input needs no gradient)")
                .contains("4 steps, loss");
        assertThat(Files.readAllLines(byFile.resolve("log.jsonl"))).hasSize(4);
    }

    @Test
    void goesOnWhereItWasEnded() throws IOException {
        Path whole = folder.resolve("whole");
        Path parts = folder.resolve("parts");
        assertThat(run("--config", yaml(common(whole) + "save-every: 2\n").toString()))
                .isZero();
        assertThat(run("--config", yaml(common(parts) + "save-every: 2\n").toString()))
                .isZero();
        deleteAll(parts.resolve("checkpoint-4"));
        assertThat(run("--config", yaml(common(parts) + "save-every: 2\n").toString(), "--resume"))
                .isZero();
        assertThat(out.toString()).contains("goes on after step 2 of 4");
        assertThat(adapter(parts)).isEqualTo(adapter(whole));
    }

    private static void deleteAll(Path folder) throws IOException {
        try (var files = Files.list(folder)) {
            for (Path file : files.toList()) {
                Files.delete(file);
            }
        }
        Files.delete(folder);
    }

    @Test
    void jobsOfOneFileTrainTogether() throws IOException {
        Path output = folder.resolve("jobs");
        String jobs = """
                eval-every: 2
                jobs:
                  - name: words
                    rank: 3
                  - name: verses
                    data: %s
                    eval: %s
                    dropout: 0.1
                    lr: 0.001
                """.formatted(verses, verses);
        assertThat(run("--config", yaml(common(output) + jobs).toString()))
                .as(err.toString())
                .isZero();
        assertThat(out.toString()).contains("2 jobs: [words, verses]").contains("verses, step 2: held-out loss");
        assertThat(Files.readString(output.resolve("words/adapter/adapter_config.json")))
                .contains("\"r\": 3");
        assertThat(output.resolve("verses/adapter/adapter_model.safetensors")).exists();
        assertThat(output.resolve("verses")).isDirectoryContaining("glob:**best-*");
    }

    @Test
    void learnsPreferencesOnAQuantizedBase() throws IOException {
        Path pairs = Files.writeString(folder.resolve("pairs.jsonl"), """
                {"prompt": "Define: cat\\n", "chosen": "a small animal", "rejected": "and it came to pass"}
                {"prompt": "Define: house\\n", "chosen": "a building", "rejected": "unto the Lord"}
                """);
        Path output = folder.resolve("dpo");
        String settings = common(output).replace(words.toString(), pairs.toString());
        assertThat(run("--config", yaml(settings).toString(), "--loss=dpo", "--quantize=nf4", "--fused=required"))
                .as(err.toString())
                .isZero();
        assertThat(Files.readAllLines(output.resolve("log.jsonl")).get(0)).contains("\"loss\":0.69");
    }

    @Test
    void twoProcessesShareEachBatch() throws IOException {
        Path two = folder.resolve("two");
        Path one = folder.resolve("one");
        assertThat(run("--config", yaml(common(two)).toString(), "--nproc", "2"))
                .as(err.toString())
                .isZero();
        assertThat(run("--config", yaml(common(one)).toString())).isZero();
        assertThat(adapter(two)).hasSameSizeAs(adapter(one));
        List<String> ofTwo = Files.readAllLines(two.resolve("log.jsonl"));
        List<String> ofOne = Files.readAllLines(one.resolve("log.jsonl"));
        assertThat(ofTwo).hasSameSizeAs(ofOne);
        for (int i = 0; i < ofOne.size(); i++) {
            assertThat(loss(ofTwo.get(i))).isCloseTo(loss(ofOne.get(i)), org.assertj.core.data.Offset.offset(2e-2));
        }
    }

    private static double loss(String line) {
        return Double.parseDouble(line.replaceAll(".*\"loss\":([0-9.]+).*", "$1"));
    }

    @ParameterizedTest
    @CsvSource({
        "speed: 3, 'unknown key \"speed\": use one of accumulation, adapter, alpha, base'",
        "rank: many, line 10",
        "nproc: 0, --nproc is 0",
        "base: nowhere, nowhere is no folder",
        "jobs: [{rank: 2}], a job has no name"
    })
    void wrongSettingsExitWithTwo(String line, String message) throws IOException {
        String key = line.substring(0, line.indexOf(':') + 1);
        String text = common(folder.resolve("out")).replaceAll("(?m)^" + key + ".*\n", "") + line + "\n";
        assertThat(run("--config", yaml(text).toString())).isEqualTo(2);
        assertThat(err.toString()).contains(message);
    }

    @Test
    void badDataNamesFileLineAndReason() throws IOException {
        Files.writeString(words, Files.readString(words) + "{\"prompt\": \"x\"}\n");
        for (String stream : List.of("--stream=false", "--stream")) {
            assertThat(run("--config", yaml(common(folder.resolve("out"))).toString(), stream))
                    .isEqualTo(1);
            assertThat(err.toString()).contains(words + ", line 25 lacks the text \"completion\"");
        }
    }
}
