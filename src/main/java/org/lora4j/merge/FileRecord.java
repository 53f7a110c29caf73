package org.lora4j.merge;

import java.io.IOException;
import java.util.LinkedHashMap;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.FormatException;

/**
 * SHA-256 of everything in a safetensors file.
 *
 * @param name the file's name
 * @param bytes its size
 * @param header hash of all bytes before the data
 * @param tensors hash of each tensor's bytes; in the order of the data, with no gaps, they are the rest of the file
 */
public record FileRecord(String name, long bytes, String header, Map<String, String> tensors) {
    public FileRecord {
        tensors = new LinkedHashMap<>(tensors);
    }

    Map<String, Object> json() {
        Map<String, Object> json = new LinkedHashMap<>();
        json.put("file", name);
        json.put("bytes", bytes);
        json.put("header_sha256", header);
        json.put("tensors_sha256", tensors);
        return json;
    }

    static FileRecord parse(@Nullable Object json, String source) throws IOException {
        if (json instanceof Map<?, ?> map
                && map.get("file") instanceof String name
                && map.get("bytes") instanceof Long bytes
                && map.get("header_sha256") instanceof String header
                && map.get("tensors_sha256") instanceof Map<?, ?> hashes) {
            return new FileRecord(name, bytes, header, Json.strings(hashes, source));
        }
        throw new FormatException(source + ": an entry of a file lacks file, bytes, header_sha256 or tensors_sha256;"
                + " do not edit what a merge wrote");
    }
}
