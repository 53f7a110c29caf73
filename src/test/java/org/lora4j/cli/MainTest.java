package org.lora4j.cli;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class MainTest {
    private final StringWriter out = new StringWriter();
    private final StringWriter err = new StringWriter();

    @TempDir
    Path folder;

    @Test
    void envSaysWhatItRunsOn() {
        assertThat(run("env")).isZero();
        assertThat(out.toString())
                .containsPattern("(?m)^operations +\\S")
                .containsPattern("(?m)^LibTorch +2\\.10\\.0\\S*, [1-9][0-9]* threads$")
                .containsPattern("(?m)^CUDA +\\S")
                .containsPattern("(?m)^Java +\\S");
    }

    @Test
    void demoSaysWhatItDoes() {
        assertThat(run("demo", "--help")).isZero();
        assertThat(out.toString())
                .contains("held-out", "PEFT", "SHA-256", "Hugging Face", "--out", "--steps", "report");
    }

    @Test
    void withoutAVerbItShowsUsage() {
        assertThat(run()).isEqualTo(2);
        assertThat(err.toString()).contains("demo", "env", "VERB");
    }

    @ParameterizedTest
    @CsvSource({
        "--steps, 0, --steps is 0 but must be 1 or more",
        "--rank, 0, --rank is 0 but must be 1 or more",
        "--steps, many, '''many'' is not an int'",
        "--base, nowhere, nowhere is no folder",
        "--speed, 3, Unknown options"
    })
    void wrongOptionsExitWithTwo(String option, String value, String message) {
        assertThat(run("demo", option, value)).isEqualTo(2);
        assertThat(err.toString()).contains(message);
    }

    @Test
    void failuresExitWithOneAndSayWhy() {
        assertThat(run("demo", "--base", folder.toString(), "--tasks", folder.toString(), "--out", folder.toString()))
                .isEqualTo(1);
        assertThat(err.toString())
                .startsWith("lora4j demo: ")
                .contains("config.json")
                .doesNotContain("\tat ");
    }

    private int run(String... arguments) {
        return Main.run(new PrintWriter(out, true), new PrintWriter(err, true), arguments);
    }
}
