package org.lora4j.cli;

import com.fasterxml.jackson.annotation.JsonAutoDetect.Visibility;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Collection;
import java.util.stream.Collectors;
import tools.jackson.core.JacksonException;
import tools.jackson.core.StreamReadFeature;
import tools.jackson.databind.DeserializationFeature;
import tools.jackson.databind.MapperFeature;
import tools.jackson.databind.PropertyNamingStrategies;
import tools.jackson.databind.exc.UnrecognizedPropertyException;
import tools.jackson.dataformat.yaml.YAMLMapper;

/** Reads the YAML file of {@code train --config}. */
final class TrainFile {
    private static final YAMLMapper YAML = YAMLMapper.builder()
            .changeDefaultVisibility(any -> any.withFieldVisibility(Visibility.ANY))
            .propertyNamingStrategy(PropertyNamingStrategies.KEBAB_CASE)
            .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
            .enable(MapperFeature.ACCEPT_CASE_INSENSITIVE_ENUMS)
            .enable(DeserializationFeature.FAIL_ON_UNKNOWN_PROPERTIES)
            .enable(DeserializationFeature.ACCEPT_SINGLE_VALUE_AS_ARRAY)
            .build();

    private TrainFile() {}

    /**
     * @throws IllegalArgumentException naming file, line and what is wrong
     * @throws IOException if the file cannot be read
     */
    static TrainSettings read(Path file) throws IOException {
        String text;
        try {
            text = Files.readString(file);
        } catch (IOException e) {
            throw new IOException("cannot read " + file + ": name an existing YAML file with --config", e);
        }
        try {
            TrainSettings settings = YAML.readValue(text, TrainSettings.class);
            return settings == null ? new TrainSettings() : settings;
        } catch (UnrecognizedPropertyException e) {
            Collection<Object> known = e.getKnownPropertyIds();
            throw new IllegalArgumentException(
                    where(file, e) + " has the unknown key \"" + e.getPropertyName() + "\": use one of "
                            + known.stream().map(Object::toString).sorted().collect(Collectors.joining(", ")),
                    e);
        } catch (JacksonException e) {
            throw new IllegalArgumentException(
                    where(file, e) + ": "
                            + e.getOriginalMessage().lines().findFirst().orElse("no YAML"),
                    e);
        }
    }

    private static String where(Path file, JacksonException e) {
        return file
                + (e.getLocation() == null ? "" : ", line " + e.getLocation().getLineNr());
    }
}
