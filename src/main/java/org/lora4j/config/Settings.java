package org.lora4j.config;

import java.util.Map;
import org.jspecify.annotations.Nullable;

/** Reads the object under one key of {@code adapter_config.json}. What is not there has the default; unknown names mean nothing. */
record Settings(String key, Map<String, @Nullable Object> values) {
    static Settings of(LoraConfig config, String key) {
        return new Settings(key, config.settings(key));
    }

    double number(String name, double otherwise) {
        Object value = values.get(name);
        if (value == null) {
            return otherwise;
        }
        if (value instanceof Number n) {
            return n.doubleValue();
        }
        throw Invalid.field(key + "." + name, value, "must be a number");
    }

    long integer(String name, long otherwise) {
        Object value = values.get(name);
        if (value == null) {
            return otherwise;
        }
        if (value instanceof Long n) {
            return n;
        }
        throw Invalid.field(key + "." + name, value, "must be a whole number");
    }

    boolean flag(String name, boolean otherwise) {
        Object value = values.get(name);
        if (value == null) {
            return otherwise;
        }
        if (value instanceof Boolean b) {
            return b;
        }
        throw Invalid.field(key + "." + name, value, "must be true or false");
    }

    @Nullable
    String text(String name) {
        Object value = values.get(name);
        if (value == null || value instanceof String) {
            return (String) value;
        }
        throw Invalid.field(key + "." + name, value, "must be a string or null");
    }

    /** The constant of the given name, whose names are those of the file. */
    <E extends Enum<E>> E choice(String name, Class<E> type, E otherwise) {
        String value = text(name);
        if (value == null) {
            return otherwise;
        }
        for (E constant : type.getEnumConstants()) {
            if (constant.toString().equals(value)) {
                return constant;
            }
        }
        throw Invalid.field(
                key + "." + name, value, "must be one of " + java.util.Arrays.toString(type.getEnumConstants()));
    }
}
