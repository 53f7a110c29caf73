package org.lora4j.cli;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintWriter;
import java.lang.management.ManagementFactory;
import java.net.ServerSocket;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;

/** Starts this command several times on this machine, as processes that train together. */
final class Processes {
    /** How long the others may take to end by themselves once one has failed, so that they can say what they know. */
    private static final long GRACE_SECONDS = 20;

    private Processes() {}

    /**
     * Runs them to their ends. The first one prints as this process would; what the others print goes to {@code err}, with
     * their number in front.
     *
     * @return 0 if all end well, else 1
     */
    static int run(int size, List<String> arguments, PrintWriter err) throws IOException, InterruptedException {
        List<Process> all = new ArrayList<>();
        List<Thread> readers = new ArrayList<>();
        int port = freePort();
        Thread end = new Thread(() -> all.forEach(Process::destroyForcibly));
        Runtime.getRuntime().addShutdownHook(end);
        try {
            for (int rank = 0; rank < size; rank++) {
                all.add(start(rank, size, port, arguments));
                if (rank > 0) {
                    readers.add(reader(rank, all.get(rank), err));
                }
            }
            int code = await(all, err);
            for (Thread reader : readers) {
                reader.join(TimeUnit.SECONDS.toMillis(1));
            }
            return code;
        } finally {
            all.forEach(Process::destroyForcibly);
            Runtime.getRuntime().removeShutdownHook(end);
        }
    }

    private static int await(List<Process> all, PrintWriter err) throws InterruptedException {
        long deadline = Long.MAX_VALUE;
        boolean failed = false;
        while (all.stream().anyMatch(Process::isAlive)) {
            Thread.sleep(50);
            for (int rank = 0; rank < all.size() && !failed; rank++) {
                Process process = all.get(rank);
                if (!process.isAlive() && process.exitValue() != 0) {
                    failed = true;
                    deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(GRACE_SECONDS);
                    err.println("lora4j train: process " + rank + " of " + all.size() + " ended with code "
                            + process.exitValue() + ", so all end; go on from the last checkpoint with --resume");
                }
            }
            if (failed && System.nanoTime() > deadline) {
                all.forEach(Process::destroyForcibly);
            }
        }
        return all.stream().allMatch(process -> process.exitValue() == 0) ? 0 : 1;
    }

    private static Process start(int rank, int size, int port, List<String> arguments) throws IOException {
        List<String> command = new ArrayList<>();
        command.add(Path.of(System.getProperty("java.home"), "bin", "java").toString());
        command.addAll(ManagementFactory.getRuntimeMXBean().getInputArguments());
        command.addAll(List.of("-cp", System.getProperty("java.class.path"), Main.class.getName()));
        command.addAll(arguments);
        ProcessBuilder builder = new ProcessBuilder(command);
        var environment = builder.environment();
        environment.put("RANK", String.valueOf(rank));
        environment.put("WORLD_SIZE", String.valueOf(size));
        environment.put("MASTER_ADDR", "127.0.0.1");
        environment.put("MASTER_PORT", String.valueOf(port));
        int threads = Math.max(1, Runtime.getRuntime().availableProcessors() / size);
        environment.putIfAbsent("OMP_NUM_THREADS", String.valueOf(threads));
        environment.putIfAbsent("OPENBLAS_NUM_THREADS", String.valueOf(threads));
        return rank == 0
                ? builder.inheritIO().start()
                : builder.redirectErrorStream(true).start();
    }

    private static Thread reader(int rank, Process process, PrintWriter err) {
        Thread thread = new Thread(() -> {
            try (var lines =
                    new BufferedReader(new InputStreamReader(process.getInputStream(), StandardCharsets.UTF_8))) {
                for (String line = lines.readLine(); line != null; line = lines.readLine()) {
                    err.println("[" + rank + "] " + line);
                }
            } catch (IOException e) {
                err.println("[" + rank + "] its output cannot be read: " + e.getMessage());
            }
        });
        thread.setDaemon(true);
        thread.start();
        return thread;
    }

    private static int freePort() throws IOException {
        try (ServerSocket socket = new ServerSocket(0)) {
            return socket.getLocalPort();
        }
    }
}
