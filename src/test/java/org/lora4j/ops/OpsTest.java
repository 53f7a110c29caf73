package org.lora4j.ops;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.File;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.jar.JarEntry;
import java.util.jar.JarOutputStream;
import java.util.stream.Stream;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Which operations a new JVM chooses, for each state of the native library and each property. */
class OpsTest {
    private static final Path CLASSES = Path.of("target", "classes");

    /** Runs in the JVM under test: one merge with the operations chosen there. */
    static final class Probe {
        public static void main(String[] args) {
            Tensor weight = torch.ones(2, 3);
            Ops.current().merge(weight, List.of(new LowRank(torch.ones(1, 3), torch.ones(2, 1), 2)));
            System.out.println(
                    "chose " + Ops.describe() + ", 1 + 2 = " + weight.sum().item_float() / 6);
        }
    }

    @TempDir
    Path folder;

    @Test
    void theNativeOperationsComeFirst() throws Exception {
        assertThat(probe(CLASSES)).contains("chose native: ", "1 + 2 = 3.0").doesNotContain("WARN");
    }

    @Test
    void theLibraryLoadsFromAJar() throws Exception {
        Path jar = folder.resolve("lora4j.jar");
        try (OutputStream out = Files.newOutputStream(jar);
                JarOutputStream entries = new JarOutputStream(out);
                Stream<Path> files = Files.walk(CLASSES)) {
            for (Path file : files.filter(Files::isRegularFile).toList()) {
                entries.putNextEntry(new JarEntry(CLASSES.relativize(file).toString()));
                Files.copy(file, entries);
            }
        }
        assertThat(probe(jar, "-Dlora4j.ops=native")).contains("chose native: ", "1 + 2 = 3.0");
    }

    @Test
    void theInstructionSetCanBeForced() throws Exception {
        assertThat(probe(CLASSES, "-Dlora4j.cpu=plain")).contains("chose native: plain", "1 + 2 = 3.0");
        assertThat(probe(CLASSES, "-Dlora4j.cpu=mmx"))
                .contains("IllegalArgumentException", "lora4j.cpu=mmx")
                .doesNotContain("chose");
    }

    @Test
    void fastMergesCanBeChosen() throws Exception {
        assertThat(probe(CLASSES, "-Dlora4j.merge=fast")).contains("fast merges on CUDA", "1 + 2 = 3.0");
        assertThat(probe(CLASSES, "-Dlora4j.merge=exact"))
                .contains("1 + 2 = 3.0")
                .doesNotContain("fast merges");
        assertThat(probe(CLASSES, "-Dlora4j.merge=quick"))
                .contains("IllegalArgumentException", "lora4j.merge=quick", "exact")
                .doesNotContain("chose");
    }

    @Test
    void withoutALibraryLibTorchIsUsedAndTheReasonLogged() throws Exception {
        assertThat(probe(classesWith(null)))
                .contains("WARN", "libjnilora4j.so is not on the class path", "chose torch: ", "1 + 2 = 3.0");
    }

    @Test
    void aBrokenLibraryIsNamed() throws Exception {
        assertThat(probe(classesWith("not a library")))
                .contains("WARN", "libjnilora4j.so does not load: ", "Build lora4j", "chose torch: ", "1 + 2 = 3.0");
    }

    @Test
    void whatIsForcedNeverFallsBack() throws Exception {
        assertThat(probe(classesWith(null), "-Dlora4j.ops=native"))
                .contains("IllegalStateException", "libjnilora4j.so is not on the class path", "-Dlora4j.ops=torch")
                .doesNotContain("chose");
        assertThat(probe(CLASSES, "-Dlora4j.ops=torch")).contains("chose torch: ", "1 + 2 = 3.0");
        assertThat(probe(CLASSES, "-Dlora4j.ops=fast"))
                .contains("lora4j.ops is \"fast\" but must be native or torch")
                .doesNotContain("chose");
    }

    @Test
    void anUnknownNameIsRefused() {
        assertThatThrownBy(() -> Ops.named("fast"))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessageContaining("native or torch");
    }

    /** The compiled classes with this text in place of the native library, or without one. */
    private Path classesWith(String library) throws IOException {
        Path copy = folder.resolve("classes");
        try (Stream<Path> files = Files.walk(CLASSES)) {
            for (Path file : files.filter(Files::isRegularFile).toList()) {
                Path target = copy.resolve(CLASSES.relativize(file));
                Files.createDirectories(target.getParent());
                if (!file.toString().endsWith(".so")) {
                    Files.copy(file, target);
                } else if (library != null) {
                    Files.writeString(target, library);
                }
            }
        }
        return copy;
    }

    private String probe(Path classes, String... properties) throws Exception {
        List<String> path = new ArrayList<>(
                Arrays.asList(System.getProperty("java.class.path").split(File.pathSeparator)));
        path.removeIf(entry -> Path.of(entry).toAbsolutePath().equals(CLASSES.toAbsolutePath()));
        path.add(classes.toAbsolutePath().toString());
        List<String> command = new ArrayList<>();
        command.add(Path.of(System.getProperty("java.home"), "bin", "java").toString());
        if (Runtime.version().feature() >= 24) {
            command.add("--enable-native-access=ALL-UNNAMED");
        }
        command.addAll(List.of(properties));
        command.addAll(List.of("-cp", String.join(File.pathSeparator, path), Probe.class.getName()));
        Path output = folder.resolve("output.txt");
        Process process = new ProcessBuilder(command)
                .redirectErrorStream(true)
                .redirectOutput(output.toFile())
                .start();
        try {
            assertThat(process.waitFor(2, TimeUnit.MINUTES)).as("ends in time").isTrue();
        } finally {
            process.destroyForcibly();
        }
        return Files.readString(output, StandardCharsets.UTF_8);
    }
}
