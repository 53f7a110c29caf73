package org.lora4j.train;

import java.util.List;
import java.util.Map;
import org.bytedeco.pytorch.Tensor;

/** The processes that train together. */
public interface World extends AutoCloseable {
    /** One process alone. */
    World ALONE = new World() {
        @Override
        public int rank() {
            return 0;
        }

        @Override
        public int size() {
            return 1;
        }

        @Override
        public void sum(List<Tensor> tensors) {}

        @Override
        public void close() {}
    };

    /** The number of this process, from 0 on. */
    int rank();

    /** How many processes there are. */
    int size();

    /**
     * The processes that the environment names, as torchrun, SLURM and others set it: RANK, WORLD_SIZE, MASTER_ADDR and
     * MASTER_PORT. Without WORLD_SIZE this process is alone.
     *
     * @throws IllegalArgumentException naming the variable that is missing or wrong
     * @throws IllegalStateException if the others cannot be reached
     */
    static World fromEnvironment(Map<String, String> environment) {
        String size = environment.get("WORLD_SIZE");
        if (size == null || size.equals("1")) {
            return ALONE;
        }
        int processes = number(environment, "WORLD_SIZE", 1);
        int rank = number(environment, "RANK", 0);
        if (rank >= processes) {
            throw new IllegalArgumentException("RANK = " + rank + ": must be below WORLD_SIZE, which is " + processes);
        }
        String host = environment.get("MASTER_ADDR");
        if (host == null || host.isBlank()) {
            throw new IllegalArgumentException("MASTER_ADDR is not set, but WORLD_SIZE is " + processes
                    + ": set it to the machine of the process with RANK 0");
        }
        // torchrun keeps the store itself; elsewhere the first process does.
        boolean hosts = rank == 0 && !"True".equals(environment.get("TORCHELASTIC_USE_AGENT_STORE"));
        return new GlooWorld(rank, processes, host, number(environment, "MASTER_PORT", 1), hosts);
    }

    private static int number(Map<String, String> environment, String name, int least) {
        String text = environment.get(name);
        if (text == null || !text.strip().matches("[0-9]{1,6}") || Integer.parseInt(text.strip()) < least) {
            throw new IllegalArgumentException(name + " is " + (text == null ? "not set" : "\"" + text + "\"")
                    + ": must be a number of " + least + " or more");
        }
        return Integer.parseInt(text.strip());
    }

    /**
     * Replaces each tensor by the sum of those of all processes.
     *
     * @throws IllegalStateException if another process is gone
     */
    void sum(List<Tensor> tensors);

    @Override
    void close();
}
