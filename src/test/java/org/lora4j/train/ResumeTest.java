package org.lora4j.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.lora4j.model.Lora;
import org.lora4j.model.LoraModel;
import org.lora4j.model.causal.CausalLM;

/** A run that ends between steps, or anywhere by a kill, and goes on. */
class ResumeTest {
    private static final int STEPS = 20;

    @TempDir
    Path folder;

    private static TrainOptions.Builder options(Path output) {
        return TrainOptions.builder()
                .steps(STEPS)
                .batchSize(4)
                .accumulation(2)
                .learningRate(3e-3)
                .warmupSteps(3)
                .schedule(Schedule.COSINE)
                .loraPlusRatio(4)
                .weightDecay(0.1)
                .saveEvery(5)
                .output(output)
                .resume(true)
                .seed(9);
    }

    /** Stops a run by an exception of the listener after a step. */
    private static TrainListener stopAfter(int last) {
        return (step, steps, loss, rate) -> {
            if (step == last) {
                throw new IllegalStateException("stopped for the test");
            }
        };
    }

    private static float[] run(TrainOptions options, long start, TrainListener listener) throws IOException {
        LoraModel<CausalLM> model = TinyTask.model(start);
        try (CausalLM base = model.base()) {
            Dataset data = TinyTask.counting(9, 6);
            try {
                new Trainer(model, options).train(data, data, listener);
            } catch (IllegalStateException e) {
                assertThat(e).hasMessage("stopped for the test");
            }
            return Weights.of(model);
        }
    }

    @Test
    void tenAndTenStepsAreTwenty() throws IOException {
        for (boolean eightBit : new boolean[] {false, true}) {
            Path whole = folder.resolve("whole" + eightBit);
            Path parts = folder.resolve("parts" + eightBit);
            float[] twenty = run(options(whole).eightBitState(eightBit).build(), 1, TrainListener.NONE);
            run(options(parts).eightBitState(eightBit).build(), 1, stopAfter(11));
            List<Integer> steps = new ArrayList<>();
            // Another start: everything must come from the checkpoint of step 10.
            float[] resumed =
                    run(options(parts).eightBitState(eightBit).build(), 2, (step, of, loss, rate) -> steps.add(step));
            assertThat(steps).startsWith(11).hasSize(10);
            assertThat(resumed).as("bit for bit").isEqualTo(twenty);
            assertThat(Files.readAllBytes(parts.resolve("checkpoint-20/adapter_model.safetensors")))
                    .isEqualTo(Files.readAllBytes(whole.resolve("checkpoint-20/adapter_model.safetensors")));
        }
    }

    @Test
    void checkpointsAreAdaptersAndOnlyTheNewestAreKept() throws IOException {
        float[] trained = run(options(folder).build(), 1, TrainListener.NONE);
        try (var entries = Files.list(folder)) {
            assertThat(entries.map(each -> each.getFileName().toString()))
                    .containsExactlyInAnyOrder("checkpoint-15", "checkpoint-20");
        }
        try (CausalLM base = CausalLM.load(TinyTask.MODEL)) {
            LoraModel<CausalLM> loaded = Lora.load(base, folder.resolve("checkpoint-20"), "again");
            loaded.setTrainable("again", true);
            assertThat(Weights.of(loaded)).isEqualTo(trained);
        }
    }

    @Test
    void refusesAnotherRunsCheckpoint() throws IOException {
        run(options(folder).build(), 1, stopAfter(6));
        assertThatIllegalArgumentException()
                .isThrownBy(() -> run(options(folder).learningRate(1e-3).build(), 1, TrainListener.NONE))
                .withMessageContaining("checkpoint-5")
                .withMessageContaining("learningRate=0.003")
                .withMessageContaining("use the same options, or another output folder");
        LoraModel<CausalLM> model = TinyTask.model(1);
        try (CausalLM base = model.base()) {
            assertThatIllegalArgumentException()
                    .isThrownBy(() -> new Trainer(model, options(folder).build())
                            .train(TinyTask.counting(8, 6), TrainListener.NONE))
                    .withMessageContaining("the training data has changed since");
        }
    }

    @Test
    void survivesKillsAtAnyMoment() throws Exception {
        Path whole = folder.resolve("whole");
        run(options(whole).saveEvery(1).build(), 1, TrainListener.NONE);
        Path killed = folder.resolve("killed");
        int kills = 0;
        for (int attempt = 0; attempt < 12; attempt++) {
            Process process = start(killed);
            // Kill it a little later each time after its first step, so that kills fall on steps and on writes.
            while (process.isAlive() && !Files.exists(killed.resolve("started" + attempt))) {
                Path mark = killed.resolve(".mark");
                if (Files.exists(mark)) {
                    Files.move(mark, killed.resolve("started" + attempt));
                }
                Thread.sleep(2);
            }
            Thread.sleep(7L * attempt);
            if (attempt < 5 && process.isAlive()) {
                process.destroyForcibly();
                kills++;
            }
            process.waitFor(2, TimeUnit.MINUTES);
            if (process.exitValue() == 0) {
                break;
            }
        }
        assertThat(kills).isPositive();
        for (String file : List.of("adapter_model.safetensors", "optimizer.safetensors", "train_state.json")) {
            assertThat(Files.readAllBytes(killed.resolve("checkpoint-20").resolve(file)))
                    .as(file)
                    .isEqualTo(Files.readAllBytes(whole.resolve("checkpoint-20").resolve(file)));
        }
    }

    private Process start(Path output) throws IOException {
        Files.createDirectories(output);
        List<String> command = List.of(
                Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "-Xmx256m",
                "-Dorg.bytedeco.javacpp.maxPhysicalBytes=0",
                "--enable-native-access=ALL-UNNAMED",
                "-cp",
                System.getProperty("java.class.path"),
                Probe.class.getName(),
                output.toString());
        return new ProcessBuilder(command)
                .redirectErrorStream(true)
                .redirectOutput(output.resolve("log").toFile())
                .start();
    }

    /** The process that is killed. */
    static final class Probe {
        public static void main(String[] arguments) throws IOException {
            Path output = Path.of(arguments[0]);
            run(options(output).saveEvery(1).build(), 1, (step, steps, loss, rate) -> {
                try {
                    if (!Files.exists(output.resolve(".mark"))) {
                        Files.createFile(output.resolve(".mark"));
                    }
                } catch (IOException e) {
                    throw new java.io.UncheckedIOException(e);
                }
            });
        }
    }
}
