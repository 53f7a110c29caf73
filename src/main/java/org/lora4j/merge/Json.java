package org.lora4j.merge;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.AtomicFile;
import org.lora4j.format.FormatException;
import tools.jackson.databind.ObjectWriter;
import tools.jackson.databind.json.JsonMapper;

/** JSON as the merge writes it, and pieces of JSON it reads. */
final class Json {
    private static final JsonMapper MAPPER = new JsonMapper();
    private static final ObjectWriter PRETTY = MAPPER.writerWithDefaultPrettyPrinter();

    private Json() {}

    static String line(Object value) {
        return MAPPER.writeValueAsString(value);
    }

    static String text(Object value) {
        return PRETTY.writeValueAsString(value) + "\n";
    }

    /** Writes a value, replacing a file in a single step. */
    static void write(Path file, Object value) throws IOException {
        write(file, text(value).getBytes(StandardCharsets.UTF_8));
    }

    /** Writes bytes, replacing a file in a single step. */
    static void write(Path file, byte[] content) throws IOException {
        ByteBuffer bytes = ByteBuffer.wrap(content);
        AtomicFile.write(file, out -> {
            while (bytes.hasRemaining()) {
                out.write(bytes);
            }
        });
    }

    /** An object whose values are all strings. */
    static Map<String, String> strings(@Nullable Object json, String source) throws IOException {
        Map<String, String> strings = new LinkedHashMap<>();
        if (!(json instanceof Map<?, ?> map)) {
            throw new FormatException(source + ": an object of strings is missing; do not edit what a merge wrote");
        }
        for (Map.Entry<?, ?> entry : map.entrySet()) {
            if (!(entry.getValue() instanceof String string)) {
                throw new FormatException(
                        source + ": \"" + entry.getKey() + "\" is no string; do not edit what a merge wrote");
            }
            strings.put((String) entry.getKey(), string);
        }
        return strings;
    }

    static List<?> list(@Nullable Object json, String name, String source) throws IOException {
        if (json instanceof List<?> list) {
            return new ArrayList<>(list);
        }
        throw new FormatException(source + ": has no list \"" + name + "\"; do not edit what a merge wrote");
    }
}
