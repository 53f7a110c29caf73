package org.lora4j.cli;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIOException;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class OutputFolderTest {
    @TempDir
    Path folder;

    @Test
    void makesWayForAnotherDemo() throws IOException {
        Path out = folder.resolve("new/out");
        OutputFolder.prepare(out);
        Files.createDirectories(out.resolve("adapters/verses"));
        Files.writeString(out.resolve("adapters/verses/adapter_config.json"), "{}");
        Files.createDirectories(out.resolve("merged"));
        Files.writeString(out.resolve("notes.txt"), "mine");
        OutputFolder.prepare(out);
        assertThat(out.resolve("adapters")).doesNotExist();
        assertThat(out.resolve("merged")).doesNotExist();
        assertThat(out.resolve("notes.txt")).hasContent("mine");
    }

    @Test
    void touchesNothingThatIsNotADemos() throws IOException {
        Files.createDirectories(folder.resolve("merged"));
        assertThatIOException()
                .isThrownBy(() -> OutputFolder.prepare(folder))
                .withMessageContaining("not from a demo")
                .withMessageContaining("--out");
        assertThat(folder.resolve("merged")).exists();
        assertThat(folder.resolve(".lora4j-demo")).doesNotExist();
    }
}
