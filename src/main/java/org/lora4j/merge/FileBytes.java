package org.lora4j.merge;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Path;
import org.lora4j.format.FormatException;

/** Reads at places of a file. */
final class FileBytes {
    private FileBytes() {}

    /** @throws FormatException if the file ends before the buffer is full */
    static void readFully(FileChannel channel, ByteBuffer target, long position, Path file) throws IOException {
        long at = position;
        while (target.hasRemaining()) {
            int count = channel.read(target, at);
            if (count < 0) {
                throw new FormatException(
                        file + ": ends at byte " + at + ", too early; it was cut or not written whole");
            }
            at += count;
        }
    }
}
