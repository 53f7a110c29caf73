package org.lora4j.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import java.io.IOException;
import java.net.ServerSocket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import org.bytedeco.pytorch.global.torch;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.lora4j.config.LoraConfig;
import org.lora4j.model.Lora;
import org.lora4j.model.LoraModel;
import org.lora4j.model.causal.CausalLM;

/** Two processes on this machine against one with the same batches. */
class ParallelTest {
    @TempDir
    Path folder;

    private static TrainOptions options(Path output, int saveEvery) {
        return TrainOptions.builder()
                .steps(12)
                .batchSize(8)
                .accumulation(2)
                .learningRate(5e-3)
                .warmupSteps(2)
                .saveEvery(saveEvery)
                .output(output)
                .seed(3)
                .build();
    }

    /** Without dropout, whose masks differ between one process and two. */
    private static LoraModel<CausalLM> model(long seed) throws IOException {
        CausalLM base = CausalLM.load(TinyTask.MODEL);
        torch.manual_seed(seed);
        LoraConfig config = LoraConfig.builder()
                .r(5)
                .loraAlpha(15)
                .targetModules("q_proj", "v_proj", "down_proj", "lm_head")
                .build();
        return Lora.wrap(base, config, TinyTask.NAME);
    }

    private static float[] train(Path output, int saveEvery, long seed, World world, TrainListener listener)
            throws IOException {
        LoraModel<CausalLM> model = model(seed);
        try (CausalLM base = model.base()) {
            // 13 examples: rounds end with a batch of 5, which two processes cannot split evenly.
            new Trainer(model, options(output, saveEvery), world).train(TinyTask.counting(13, 7), listener);
            return Weights.of(model);
        }
    }

    @Test
    void twoProcessesAreOneWithTheSameBatches() throws Exception {
        float[] alone = train(folder.resolve("alone"), 0, 1, World.ALONE, TrainListener.NONE);
        List<Process> processes = start("run", 2);
        for (Process process : processes) {
            assertThat(process.waitFor(3, TimeUnit.MINUTES)).isTrue();
            assertThat(process.exitValue()).as(logs()).isZero();
        }
        float[] first = read("weights0");
        assertThat(read("weights1")).as("all end with the same bits").isEqualTo(first);
        assertThat(Weights.difference(alone, first)).isLessThan(1e-4);
        try (CausalLM base = CausalLM.load(TinyTask.MODEL)) {
            LoraModel<CausalLM> saved = Lora.load(base, folder.resolve("checkpoint-12"), "saved");
            saved.setTrainable("saved", true);
            assertThat(Weights.of(saved)).isEqualTo(first);
        }
    }

    @Test
    void aDeadProcessEndsAllWithTheLastCheckpoint() throws Exception {
        List<Process> processes = start("die", 2);
        for (Process process : processes) {
            assertThat(process.waitFor(3, TimeUnit.MINUTES)).isTrue();
        }
        assertThat(processes.get(1).exitValue()).isEqualTo(9);
        assertThat(processes.get(0).exitValue()).isNotZero();
        assertThat(Files.readString(folder.resolve("log0")))
                .contains("another process of this run is gone at step 6")
                .contains("the last good checkpoint is " + folder.resolve("checkpoint-4"))
                .contains("start all processes again with resume");
        assertThat(Checkpoints.readState(folder.resolve("checkpoint-4")).step()).isEqualTo(4);
    }

    @Test
    void theEnvironmentMustBeWhole() {
        assertThat(World.fromEnvironment(Map.of("RANK", "3")).size()).isEqualTo(1);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> World.fromEnvironment(Map.of("WORLD_SIZE", "2", "RANK", "2")))
                .withMessage("RANK = 2: must be below WORLD_SIZE, which is 2");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> World.fromEnvironment(Map.of("WORLD_SIZE", "two", "RANK", "0")))
                .withMessageContaining("WORLD_SIZE is \"two\"");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> World.fromEnvironment(Map.of("WORLD_SIZE", "2", "RANK", "1")))
                .withMessageContaining("MASTER_ADDR is not set");
    }

    @Test
    void aBatchMustSplitEvenly() throws IOException {
        World three = new World() {
            @Override
            public int rank() {
                return 0;
            }

            @Override
            public int size() {
                return 3;
            }

            @Override
            public void sum(List<org.bytedeco.pytorch.Tensor> tensors) {}

            @Override
            public void close() {}
        };
        assertThatIllegalArgumentException()
                .isThrownBy(() -> train(folder, 0, 1, three, TrainListener.NONE))
                .withMessageContaining(
                        "batchSize = 8: must be a multiple of accumulation (2) times the number of processes");
    }

    private float[] read(String name) throws IOException {
        byte[] bytes = Files.readAllBytes(folder.resolve(name));
        float[] values = new float[bytes.length / 4];
        java.nio.ByteBuffer.wrap(bytes).asFloatBuffer().get(values);
        return values;
    }

    private String logs() throws IOException {
        return Files.readString(folder.resolve("log0")) + Files.readString(folder.resolve("log1"));
    }

    private List<Process> start(String what, int size) throws IOException {
        int port;
        try (ServerSocket free = new ServerSocket(0)) {
            port = free.getLocalPort();
        }
        List<Process> processes = new ArrayList<>();
        for (int rank = 0; rank < size; rank++) {
            ProcessBuilder builder = new ProcessBuilder(
                    Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                    "-Xmx256m",
                    "-Dorg.bytedeco.javacpp.maxPhysicalBytes=0",
                    "--enable-native-access=ALL-UNNAMED",
                    "-cp",
                    System.getProperty("java.class.path"),
                    Probe.class.getName(),
                    what,
                    folder.toString());
            builder.environment()
                    .putAll(Map.of(
                            "RANK", "" + rank,
                            "WORLD_SIZE", "" + size,
                            "MASTER_ADDR", "127.0.0.1",
                            "MASTER_PORT", "" + port,
                            "OMP_NUM_THREADS", "1"));
            processes.add(builder.redirectErrorStream(true)
                    .redirectOutput(folder.resolve("log" + rank).toFile())
                    .start());
        }
        return processes;
    }

    /** One of the processes. */
    static final class Probe {
        public static void main(String[] arguments) throws IOException {
            Path folder = Path.of(arguments[1]);
            try (World world = World.fromEnvironment(System.getenv())) {
                TrainListener listener = (step, steps, loss, rate) -> {
                    if (arguments[0].equals("die") && step == 5 && world.rank() == 1) {
                        Runtime.getRuntime().halt(9);
                    }
                };
                // Only the first process has the start that one process has.
                float[] weights = train(folder, 4, 1 + world.rank(), world, listener);
                java.nio.ByteBuffer bytes = java.nio.ByteBuffer.allocate(4 * weights.length);
                bytes.asFloatBuffer().put(weights);
                Files.write(folder.resolve("weights" + world.rank()), bytes.array());
            }
        }
    }
}
