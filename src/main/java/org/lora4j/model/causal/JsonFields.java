package org.lora4j.model.causal;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.FormatException;
import org.lora4j.format.StrictJson;

/** Typed access to the fields of a JSON object; every error names file and field. */
final class JsonFields {
    private static final long MAX_BYTES = 16 << 20;

    private final Map<String, @Nullable Object> object;
    private final String name;

    private JsonFields(Map<String, @Nullable Object> object, String name) {
        this.object = object;
        this.name = name;
    }

    static JsonFields parse(String json, String name) {
        try {
            return new JsonFields(StrictJson.parseObject(json.getBytes(StandardCharsets.UTF_8), name), name);
        } catch (FormatException e) {
            throw new IllegalArgumentException(e.getMessage(), e);
        }
    }

    static JsonFields read(Path file) throws IOException {
        return new JsonFields(StrictJson.readObject(file, MAX_BYTES), file.toString());
    }

    /** Where the object is from, for messages. */
    String name() {
        return name;
    }

    /** Whether a field is there, null or not. */
    boolean has(String field) {
        return object.containsKey(field);
    }

    /** Whether a field is there and not null. */
    boolean present(String field) {
        return object.get(field) != null;
    }

    IllegalArgumentException error(String field, String rule) {
        Object value = object.get(field);
        String shown = has(field) ? String.valueOf(value) : "absent";
        shown = shown.length() <= 80 ? shown : shown.substring(0, 77) + "...";
        return new IllegalArgumentException(name + ": " + field + " is " + shown + " but must be " + rule);
    }

    int integer(String field) {
        if (object.get(field) instanceof Long value && value == value.intValue()) {
            return value.intValue();
        }
        throw error(field, "a whole number of at most " + Integer.MAX_VALUE);
    }

    int integer(String field, int fallback) {
        return present(field) ? integer(field) : fallback;
    }

    double number(String field) {
        if (object.get(field) instanceof Number value) {
            return value.doubleValue();
        }
        throw error(field, "a number");
    }

    double number(String field, double fallback) {
        return present(field) ? number(field) : fallback;
    }

    boolean flag(String field, boolean fallback) {
        if (!present(field)) {
            return fallback;
        }
        if (object.get(field) instanceof Boolean value) {
            return value;
        }
        throw error(field, "true or false");
    }

    @Nullable
    String text(String field) {
        if (!present(field)) {
            return null;
        }
        if (object.get(field) instanceof String value) {
            return value;
        }
        throw error(field, "a string");
    }

    @Nullable
    List<String> texts(String field) {
        if (!present(field)) {
            return null;
        }
        List<String> texts = new ArrayList<>();
        if (object.get(field) instanceof List<?> items) {
            for (Object item : items) {
                if (!(item instanceof String text)) {
                    throw error(field, "a list of strings");
                }
                texts.add(text);
            }
            return texts;
        }
        throw error(field, "a list of strings");
    }

    /** A token id, or null if the field is absent or null. */
    @Nullable
    Long tokenId(String field) {
        if (!present(field)) {
            return null;
        }
        if (object.get(field) instanceof Long id && id >= 0) {
            return id;
        }
        throw error(field, "a token id");
    }

    /** One id or a list of ids; empty if the field is absent or null. */
    List<Long> tokenIds(String field) {
        if (!present(field)) {
            return List.of();
        }
        if (!(object.get(field) instanceof List<?> items)) {
            return List.of(tokenId(field));
        }
        List<Long> ids = new ArrayList<>();
        for (Object item : items) {
            if (!(item instanceof Long id) || id < 0) {
                throw error(field, "a token id or a list of token ids");
            }
            ids.add(id);
        }
        return ids;
    }

    boolean isObject(String field) {
        return object.get(field) instanceof Map;
    }

    /** The object in a field, or null if it is absent or null. */
    @SuppressWarnings("unchecked")
    @Nullable
    JsonFields object(String field) {
        if (!present(field)) {
            return null;
        }
        if (object.get(field) instanceof Map<?, ?> value) {
            return new JsonFields((Map<String, @Nullable Object>) value, name + ": " + field);
        }
        throw error(field, "an object");
    }
}
