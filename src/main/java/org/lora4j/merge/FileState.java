package org.lora4j.merge;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.BasicFileAttributes;
import java.nio.file.attribute.FileTime;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.FormatException;

/** What a file looked like when it was opened, to notice that somebody changed it. */
record FileState(
        Path path, long size, FileTime modified, @Nullable Object key) {
    static FileState of(Path path) throws IOException {
        BasicFileAttributes now = Files.readAttributes(path, BasicFileAttributes.class);
        return new FileState(path, now.size(), now.lastModifiedTime(), now.fileKey());
    }

    /** @throws FormatException if the file is not the one it was */
    void check() throws IOException {
        if (!equals(of(path))) {
            throw new FormatException(
                    path + ": was changed while it was read, so what was read may be of two versions; "
                            + "wait until nobody writes it and start again");
        }
    }
}
