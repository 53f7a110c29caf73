package org.lora4j.format;

import java.io.IOException;
import java.nio.channels.FileChannel;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.util.concurrent.ThreadLocalRandom;

/**
 * Writes files so that a reader sees the old content or the new one, never a part.
 *
 * <p>The content goes into a temporary file in the same directory, is forced to disk and then renamed. A file that is
 * mapped into memory while it is replaced keeps its content for those who mapped it.
 */
public final class AtomicFile {
    /** Writes the content of a file. */
    @FunctionalInterface
    public interface Content {
        void writeTo(FileChannel out) throws IOException;
    }

    private AtomicFile() {}

    /**
     * Creates or replaces a file; its directory must exist. If writing fails, the target is as it was and the temporary
     * file is removed.
     */
    public static void write(Path target, Content content) throws IOException {
        Path directory = target.toAbsolutePath().getParent();
        if (directory == null || !Files.isDirectory(directory)) {
            throw new IOException("cannot write " + target + ": " + directory + " is not a directory; create it first");
        }
        Path temporary = create(directory, target);
        try {
            try (FileChannel out = FileChannel.open(temporary, StandardOpenOption.WRITE)) {
                content.writeTo(out);
                out.force(true);
            }
            Files.move(temporary, target, StandardCopyOption.ATOMIC_MOVE);
        } catch (Throwable failure) {
            try {
                Files.deleteIfExists(temporary);
            } catch (IOException e) {
                failure.addSuppressed(e);
            }
            throw failure;
        }
        try (FileChannel entry = FileChannel.open(directory, StandardOpenOption.READ)) {
            entry.force(true);
        } catch (IOException unsupported) {
            // Some file systems cannot force a directory; the rename is done all the same.
        }
    }

    /** A new empty file beside the target. Unlike Java's own temporary files it has the permissions of any other. */
    private static Path create(Path directory, Path target) throws IOException {
        while (true) {
            String suffix = Long.toHexString(ThreadLocalRandom.current().nextLong());
            Path path = directory.resolve("." + target.getFileName() + "." + suffix + ".tmp");
            try {
                return Files.createFile(path);
            } catch (FileAlreadyExistsException taken) {
                // Another writer has this name: draw again.
            }
        }
    }
}
