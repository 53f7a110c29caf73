package org.lora4j.cli;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Comparator;
import java.util.List;
import java.util.stream.Stream;

/** The folder a demo writes to: new, empty, or from an earlier demo, whose results give way. */
final class OutputFolder {
    /** Marks a folder as a demo's, so that nothing else is ever deleted. */
    private static final String MARK = ".lora4j-demo";

    private OutputFolder() {}

    /**
     * Makes the folder ready.
     *
     * @throws IOException if it holds something that is not a demo's
     */
    static void prepare(Path folder) throws IOException {
        Files.createDirectories(folder);
        if (Files.exists(folder.resolve(MARK))) {
            delete(folder.resolve("adapters"));
            delete(folder.resolve("merged"));
            return;
        }
        try (Stream<Path> entries = Files.list(folder)) {
            if (entries.findAny().isPresent()) {
                throw new IOException(folder + " holds files that are not from a demo: name another folder with --out");
            }
        }
        Files.createFile(folder.resolve(MARK));
    }

    private static void delete(Path folder) throws IOException {
        if (!Files.exists(folder)) {
            return;
        }
        List<Path> deepestFirst;
        try (Stream<Path> all = Files.walk(folder)) {
            deepestFirst = all.sorted(Comparator.reverseOrder()).toList();
        }
        for (Path path : deepestFirst) {
            Files.delete(path);
        }
    }
}
