package org.lora4j.train;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.bytedeco.javacpp.Pointer;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.lora4j.model.LoraModel;
import org.lora4j.model.causal.CausalLM;

/**
 * Trains 500 steps in a process of its own and watches its resident memory. The process has a heap of fixed size whose
 * pages are all touched at the start, so that growth of resident memory is growth of native memory.
 */
class TrainingMemoryTest {
    private static final int STEPS = 500;
    private static final int WARM_UP = 200;
    private static final int BATCH = 16;
    private static final int LENGTH = 63;

    /**
     * The growth to accept, for code the JVM still compiles and the allocator's slack. One activation of the smallest
     * kind, 16 rows of 64 tokens by 24 numbers, is 96 KiB: leaked at each of the 300 steps measured it would be
     * 28 MiB, so a leak of a single one is found.
     */
    private static final long BOUND_KIB = 16 << 10;

    @TempDir
    Path folder;

    @Test
    void residentMemoryStaysFlat() throws Exception {
        Path output = folder.resolve("out");
        List<String> command = List.of(
                Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "-Xms128m",
                "-Xmx128m",
                "-XX:+AlwaysPreTouch",
                "-Dorg.bytedeco.javacpp.maxPhysicalBytes=0",
                "-Dorg.bytedeco.javacpp.maxBytes=0",
                "--enable-native-access=ALL-UNNAMED",
                "-cp",
                System.getProperty("java.class.path"),
                Probe.class.getName());
        Process process = new ProcessBuilder(command)
                .redirectErrorStream(true)
                .redirectOutput(output.toFile())
                .start();
        try {
            assertThat(process.waitFor(5, TimeUnit.MINUTES))
                    .as("finished in five minutes")
                    .isTrue();
        } finally {
            process.destroyForcibly();
        }
        String text = Files.readString(output);
        System.out.println(text.strip());
        assertThat(process.exitValue()).as(text).isZero();
        long growth = number(text, "growth KiB");
        assertThat(growth).as(text).isLessThan(BOUND_KIB);
        assertThat(number(text, "handles more")).as(text).isLessThanOrEqualTo(0);
        assertThat(number(text, "handle bytes more")).as(text).isLessThanOrEqualTo(0);
    }

    private static long number(String text, String name) {
        return text.lines()
                .filter(line -> line.startsWith(name + ": "))
                .mapToLong(line -> Long.parseLong(line.substring(name.length() + 2)))
                .findFirst()
                .orElseThrow(() -> new AssertionError("no \"" + name + "\" in: " + text));
    }

    /** The process that trains. */
    static final class Probe {
        private static long resident;
        private static long handles;
        private static long bytes;

        public static void main(String[] arguments) throws IOException {
            LoraModel<CausalLM> model = TinyTask.model(1);
            var options = TrainOptions.builder()
                    .steps(STEPS)
                    .batchSize(BATCH)
                    .learningRate(1e-3)
                    .build();
            Trainer trainer = new Trainer(model, options);
            trainer.train(TinyTask.counting(3 * BATCH, LENGTH), (step, steps, loss, rate) -> {
                if (step == WARM_UP) {
                    note();
                    System.out.println("resident KiB after " + WARM_UP + " steps: " + resident);
                } else if (step == STEPS) {
                    report(resident, handles, bytes);
                }
            });
        }

        private static void report(long residentBefore, long handlesBefore, long bytesBefore) {
            note();
            System.out.println("resident KiB after " + STEPS + " steps: " + resident);
            System.out.println("growth KiB: " + (resident - residentBefore));
            System.out.println("handles more: " + (handles - handlesBefore));
            System.out.println("handle bytes more: " + (bytes - bytesBefore));
        }

        /**
         * JavaCPP drops the entry of a hook that was given to autograd only when its Java object is collected, though nothing
         * native hangs on it. So this collects first; native memory must not depend on that, which the residence shows.
         */
        private static void note() {
            System.gc();
            Pointer.deallocateReferences();
            try {
                Thread.sleep(300);
            } catch (InterruptedException e) {
                throw new IllegalStateException(e);
            }
            resident = status("VmRSS");
            handles = Pointer.totalCount();
            bytes = Pointer.totalBytes();
        }

        private static long status(String field) {
            try {
                return Files.readAllLines(Path.of("/proc/self/status")).stream()
                        .filter(line -> line.startsWith(field + ":"))
                        .mapToLong(line -> Long.parseLong(line.replaceAll("[^0-9]", "")))
                        .findFirst()
                        .orElseThrow();
            } catch (IOException e) {
                throw new java.io.UncheckedIOException("cannot read /proc/self/status", e);
            }
        }
    }
}
