package org.lora4j.model;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import java.util.TreeMap;
import tools.jackson.databind.json.JsonMapper;

/** Collects how far lora4j is from PEFT in each golden case, for {@link ParityDoc}. */
final class ParityReport {
    static final Path FOLDER = Path.of("target/parity");

    private final Map<String, Map<String, Double>> differences = new TreeMap<>();
    private final Path file;

    /** @param test the class that records */
    ParityReport(Class<?> test) {
        file = FOLDER.resolve(test.getSimpleName() + ".json");
    }

    /**
     * Notes a difference; of several under one name the largest stays.
     *
     * @param name the golden case, as group/name
     * @param what what was compared, such as {@code output}
     * @param relative the largest difference, as a part of the largest value
     */
    void record(String name, String what, double relative) {
        differences.computeIfAbsent(name, n -> new TreeMap<>()).merge(what, relative, Math::max);
    }

    /** Writes what was noted; to be called once after all tests of the class. */
    void write() {
        try {
            Files.createDirectories(FOLDER);
            new JsonMapper().writerWithDefaultPrettyPrinter().writeValue(file.toFile(), differences);
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }
}
