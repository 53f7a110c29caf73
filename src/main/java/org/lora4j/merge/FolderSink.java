package org.lora4j.merge;

import java.io.Closeable;
import java.io.IOException;
import java.io.InterruptedIOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.util.Map;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.jspecify.annotations.Nullable;

/** Writes the files of a result into a folder: each under another name until it is whole and on disk. */
final class FolderSink implements Pipeline.Sink, Closeable {
    /** So many bytes are handed to the disk while the next ones are computed. */
    private static final long FLUSH_BYTES = 128L << 20;

    private final Path folder;
    private final Journal journal;
    private final @Nullable ResidualFolder residuals;
    private final ExecutorService flusher = Executors.newSingleThreadExecutor(task -> {
        Thread thread = new Thread(task, "lora4j-flush");
        thread.setDaemon(true);
        return thread;
    });
    private @Nullable Future<?> flush;
    private @Nullable FileChannel channel;
    private @Nullable Path part;
    private long unflushed;

    FolderSink(Path folder, Journal journal, @Nullable ResidualFolder residuals) {
        this.folder = folder;
        this.journal = journal;
        this.residuals = residuals;
    }

    @Override
    public void begin(OutputFile file) throws IOException {
        Path path = folder.resolve(file.name() + ".part");
        FileChannel opened = FileChannel.open(
                path, StandardOpenOption.CREATE, StandardOpenOption.TRUNCATE_EXISTING, StandardOpenOption.WRITE);
        part = path;
        channel = opened;
        unflushed = 0;
        write(opened, ByteBuffer.wrap(file.header()), 0);
        if (residuals != null) {
            residuals.begin(file);
        }
    }

    static void write(FileChannel channel, ByteBuffer bytes, long position) throws IOException {
        long at = position;
        while (bytes.hasRemaining()) {
            at += channel.write(bytes, at);
        }
    }

    @Override
    public void write(
            OutputFile.Tensor tensor,
            long position,
            ByteBuffer result,
            @Nullable ByteBuffer original,
            byte @Nullable [] residual)
            throws IOException {
        FileChannel open = channel;
        if (open == null) {
            throw new IllegalStateException("no file was begun");
        }
        unflushed += result.remaining();
        write(open, result, position);
        if (residuals != null && residual != null) {
            residuals.add(tensor.info().name(), residual);
        }
        if (unflushed >= FLUSH_BYTES && (flush == null || flush.isDone())) {
            awaitFlush();
            unflushed = 0;
            flush = flusher.submit(() -> {
                open.force(false);
                return null;
            });
        }
    }

    @Override
    public void end(OutputFile file, Map<String, String> inputs, Map<String, String> outputs) throws IOException {
        FileChannel open = channel;
        Path path = part;
        if (open == null || path == null) {
            throw new IllegalStateException("no file was begun");
        }
        if (residuals != null) {
            residuals.end(file);
        }
        awaitFlush();
        open.force(true);
        open.close();
        channel = null;
        Files.move(path, folder.resolve(file.name()), StandardCopyOption.ATOMIC_MOVE);
        sync(folder);
        journal.add(new FileRecord(file.name(), file.bytes(), Hash.of(file.header()), outputs), inputs);
    }

    /** A system tells of a failed write once: the flush that was told must not keep it to itself. */
    private void awaitFlush() throws IOException {
        Future<?> pending = flush;
        flush = null;
        if (pending == null) {
            return;
        }
        try {
            pending.get();
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw new InterruptedIOException("interrupted while the disk was written");
        } catch (ExecutionException e) {
            throw e.getCause() instanceof IOException io ? io : new IOException(e.getCause());
        }
    }

    /** Forces a folder's entries to disk, where the file system can. */
    static void sync(Path folder) {
        try (FileChannel entry = FileChannel.open(folder, StandardOpenOption.READ)) {
            entry.force(true);
        } catch (IOException unsupported) {
            // Some file systems cannot force a folder; the entries are there all the same.
        }
    }

    @Override
    public void close() throws IOException {
        flusher.shutdownNow();
        if (channel != null) {
            channel.close();
        }
        if (residuals != null) {
            residuals.close();
        }
    }
}
