package org.lora4j.merge;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ArrayBlockingQueue;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorCompletionService;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import org.jspecify.annotations.Nullable;

/**
 * Reads, computes and writes the tiles of files at the same time, in three threads and few buffers. The order of tiles is
 * the order of the files' bytes.
 */
final class Pipeline {
    /** Elements of a tile: 4 MB of float32. */
    static final int TILE_ELEMENTS = 1 << 20;

    /** Bytes of the largest tile of a tensor that may be computed. */
    static final int TILE_BYTES = TILE_ELEMENTS * Float.BYTES;

    private static final int SLOTS = 4;

    /**
     * A tensor to write.
     *
     * @param target its place in the file
     * @param work how its bytes come about
     * @param hashesInput whether what is read is the tensor of the checkpoint
     * @param original what is there now and must be kept in case, or null
     */
    record Task(
            OutputFile.Tensor target,
            TensorWork work,
            boolean hashesInput,
            @Nullable Bytes original) {}

    /** Receives the result, in order, in one thread. */
    interface Sink {
        void begin(OutputFile file) throws IOException;

        /**
         * Writes a piece of a tensor.
         *
         * @param position in the file
         * @param original what was at this place of the checkpoint, if the task asked for it
         * @param residual what {@link Residuals} made of the two, if anything
         */
        void write(
                OutputFile.Tensor tensor,
                long position,
                ByteBuffer result,
                @Nullable ByteBuffer original,
                byte @Nullable [] residual)
                throws IOException;

        /** All tensors of the file are written. */
        void end(OutputFile file, Map<String, String> inputs, Map<String, String> outputs) throws IOException;
    }

    /** Makes of an original tile and its result what leads back. */
    interface Residuals {
        byte[] encode(Task task, Matrices.Tile tile, ByteBuffer original, ByteBuffer result) throws IOException;
    }

    private record Job(OutputFile file, List<Task> tasks) {}

    /** A tile on its way, or the end of a tensor or a file. */
    private static final class Slot {
        private @Nullable ByteBuffer first;
        private @Nullable ByteBuffer second;
        private @Nullable ByteBuffer third;

        @Nullable
        ByteBuffer in;

        @Nullable
        ByteBuffer original;

        @Nullable
        ByteBuffer result;

        byte @Nullable [] residual;

        @Nullable
        Job job;

        @Nullable
        Task task;

        Matrices.@Nullable Tile tile;
        boolean firstOfTensor;
        boolean lastOfTensor;
        boolean lastOfFile;
        boolean last;

        @Nullable
        String inputHash;

        @Nullable
        String outputHash;

        ByteBuffer in(int bytes, int most) {
            first = first == null ? ByteBuffer.allocateDirect(most) : first;
            return first.clear().limit(bytes);
        }

        ByteBuffer out(int most) {
            second = second == null ? ByteBuffer.allocateDirect(most) : second;
            return second.clear();
        }

        ByteBuffer original(int bytes, int most) {
            third = third == null ? ByteBuffer.allocateDirect(most) : third;
            return third.clear().limit(bytes);
        }
    }

    private final List<Job> jobs = new ArrayList<>();
    private final Sink sink;
    private final @Nullable Residuals residuals;
    private final MergeProgress progress;
    private final BlockingQueue<Slot> free = new ArrayBlockingQueue<>(SLOTS);
    private final BlockingQueue<Slot> read = new ArrayBlockingQueue<>(SLOTS);
    private final BlockingQueue<Slot> computed = new ArrayBlockingQueue<>(SLOTS);
    private long total;
    /** Bytes of the largest tile that is read or written; at most {@link #TILE_BYTES}. */
    private int largest = 1;

    private long done;

    Pipeline(Sink sink, @Nullable Residuals residuals, MergeProgress progress) {
        this.sink = sink;
        this.residuals = residuals;
        this.progress = progress;
        for (int i = 0; i < SLOTS; i++) {
            free.add(new Slot());
        }
    }

    /** Adds a file to write. */
    void add(OutputFile file, List<Task> tasks) {
        jobs.add(new Job(file, tasks));
        for (Task task : tasks) {
            for (Matrices.Tile tile : task.work().tiles()) {
                total += task.work().outBytes(tile);
                // A tile of another type may be twice as large as it is read or written.
                int most = Math.max(task.work().inBytes(tile), task.work().outBytes(tile));
                largest = Math.max(largest, Math.min(TILE_BYTES, 2 * most));
            }
        }
    }

    /** Counts bytes that are there already. */
    void skip(long bytes) {
        total += bytes;
        done += bytes;
    }

    /**
     * Writes all files. The first failure of any thread ends it.
     *
     * @throws IOException if reading or writing fails, or an input is found wrong on the way
     */
    void run() throws IOException {
        ExecutorService threads = Executors.newFixedThreadPool(3, task -> {
            Thread thread = new Thread(task, "lora4j-merge");
            thread.setDaemon(true);
            return thread;
        });
        ExecutorCompletionService<@Nullable Void> stages = new ExecutorCompletionService<>(threads);
        try {
            stages.submit(this::readAll);
            stages.submit(this::computeAll);
            stages.submit(this::writeAll);
            for (int i = 0; i < 3; i++) {
                stages.take().get();
            }
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw new IOException("the merge was interrupted; continue it with --resume", e);
        } catch (ExecutionException e) {
            rethrow(e.getCause());
        } finally {
            threads.shutdownNow();
            await(threads);
        }
    }

    private static void await(ExecutorService threads) {
        boolean interrupted = Thread.interrupted();
        try {
            while (!threads.awaitTermination(1, java.util.concurrent.TimeUnit.SECONDS)) {
                threads.shutdownNow();
            }
        } catch (InterruptedException e) {
            interrupted = true;
        }
        if (interrupted) {
            Thread.currentThread().interrupt();
        }
    }

    private static void rethrow(@Nullable Throwable cause) throws IOException {
        if (cause instanceof IOException io) {
            throw io;
        }
        if (cause instanceof UncheckedIOException io) {
            throw new IOException(io.getCause().getMessage(), io);
        }
        if (cause instanceof RuntimeException unchecked) {
            throw unchecked;
        }
        if (cause instanceof Error error) {
            throw error;
        }
        throw new IOException("the merge failed", cause);
    }

    private @Nullable Void readAll() throws IOException, InterruptedException {
        for (Job job : jobs) {
            for (int t = 0; t < job.tasks().size(); t++) {
                Task task = job.tasks().get(t);
                TensorWork work = task.work();
                List<Matrices.Tile> tiles = work.tiles();
                MessageDigest digest = Hash.sha256();
                for (int i = 0; i < tiles.size(); i++) {
                    Slot slot = take(job, task);
                    Matrices.Tile tile = tiles.get(i);
                    slot.tile = tile;
                    ByteBuffer in = slot.in(work.inBytes(tile), largest);
                    work.read(tile, in);
                    slot.in = in.flip();
                    if (task.hashesInput()) {
                        digest.update(in.duplicate());
                    }
                    Bytes original = task.original();
                    if (original != null) {
                        int size = work.countsBytes() ? 1 : Numbers.bytes(originalType(task));
                        ByteBuffer kept = slot.original((int) tile.elements() * size, largest);
                        original.read(tile.first() * size, kept);
                        slot.original = kept.flip();
                    }
                    slot.firstOfTensor = i == 0;
                    slot.lastOfTensor = i == tiles.size() - 1;
                    if (slot.lastOfTensor) {
                        slot.inputHash = task.hashesInput() ? Hash.hex(digest) : null;
                    }
                    read.put(slot);
                }
                if (tiles.isEmpty()) {
                    Slot slot = take(job, task);
                    slot.firstOfTensor = true;
                    slot.lastOfTensor = true;
                    slot.inputHash = task.hashesInput() ? Hash.hex(digest) : null;
                    read.put(slot);
                }
            }
            Slot end = take(job, null);
            end.lastOfFile = true;
            read.put(end);
        }
        Slot end = take(null, null);
        end.last = true;
        read.put(end);
        return null;
    }

    private static org.lora4j.format.DType originalType(Task task) {
        OutputFile.Tensor target = task.target();
        TensorEdit edit = target.edit();
        if (edit != null && edit.base != null) {
            return edit.base.info().dtype();
        }
        return target.source() == null
                ? target.info().dtype()
                : target.source().info().dtype();
    }

    private Slot take(@Nullable Job job, @Nullable Task task) throws InterruptedException {
        Slot slot = free.take();
        slot.job = job;
        slot.task = task;
        slot.tile = null;
        slot.in = null;
        slot.original = null;
        slot.result = null;
        slot.residual = null;
        slot.inputHash = null;
        slot.outputHash = null;
        slot.firstOfTensor = false;
        slot.lastOfTensor = false;
        slot.lastOfFile = false;
        slot.last = false;
        return slot;
    }

    private @Nullable Void computeAll() throws IOException, InterruptedException {
        Task open = null;
        MessageDigest digest = Hash.sha256();
        try {
            while (true) {
                Slot slot = read.take();
                Task task = slot.task;
                if (task != null) {
                    if (slot.firstOfTensor) {
                        open = task;
                        task.work().start();
                    }
                    ByteBuffer in = slot.in;
                    Matrices.Tile tile = slot.tile;
                    if (in != null && tile != null) {
                        boolean copy = task.work().isCopy();
                        ByteBuffer out = copy || task.work().isInPlace() ? in : slot.out(largest);
                        ByteBuffer result = copy ? in : task.work().compute(tile, in, out);
                        slot.result = result;
                        ByteBuffer original = slot.original;
                        if (residuals != null && original != null) {
                            slot.residual = residuals.encode(task, tile, original, result);
                        }
                    }
                    ByteBuffer hashed = slot.result;
                    boolean same = task.work().isCopy() && task.hashesInput();
                    if (hashed != null && !same) {
                        digest.update(hashed.duplicate());
                    }
                    if (slot.lastOfTensor) {
                        String hash = task.work().sourceHash();
                        slot.inputHash = hash == null ? slot.inputHash : hash;
                        slot.outputHash = same ? slot.inputHash : Hash.hex(digest);
                        task.work().finish();
                        open = null;
                    }
                }
                // Once it is handed on, the slot may be another tile's.
                boolean last = slot.last;
                computed.put(slot);
                if (last) {
                    return null;
                }
            }
        } finally {
            if (open != null) {
                open.work().finish();
            }
        }
    }

    private @Nullable Void writeAll() throws IOException, InterruptedException {
        Job open = null;
        Map<String, String> inputs = new LinkedHashMap<>();
        Map<String, String> outputs = new LinkedHashMap<>();
        while (true) {
            Slot slot = computed.take();
            if (slot.last) {
                return null;
            }
            Job job = slot.job;
            if (job != null && job != open) {
                open = job;
                inputs.clear();
                outputs.clear();
                sink.begin(job.file());
            }
            Task task = slot.task;
            if (task != null && job != null) {
                write(slot, job, task);
                String name = task.target().info().name();
                String input = slot.inputHash;
                String output = slot.outputHash;
                if (slot.lastOfTensor && input != null) {
                    inputs.put(name, input);
                }
                if (slot.lastOfTensor && output != null) {
                    outputs.put(name, output);
                }
            }
            if (slot.lastOfFile && job != null) {
                sink.end(job.file(), inputs, outputs);
            }
            free.put(slot);
        }
    }

    private void write(Slot slot, Job job, Task task) throws IOException {
        ByteBuffer result = slot.result;
        Matrices.Tile tile = slot.tile;
        if (result == null || tile == null) {
            return;
        }
        long size = task.target().info().dtype().bits();
        long offset = task.work().countsBytes() ? tile.first() : tile.first() * size / 8;
        long position = job.file().header().length + task.target().info().begin() + offset;
        int bytes = result.remaining();
        sink.write(task.target(), position, result, slot.original, slot.residual);
        done += bytes;
        progress.advance(done, total, task.target().info().name());
    }
}
