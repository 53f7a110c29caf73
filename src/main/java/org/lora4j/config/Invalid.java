package org.lora4j.config;

import java.util.Collection;
import java.util.LinkedHashSet;
import java.util.Set;
import org.jspecify.annotations.Nullable;

/** The one form of a complaint about a value: field, value, rule. */
final class Invalid {
    private static final int SHOWN = 200;

    private Invalid() {}

    static IllegalArgumentException field(String field, @Nullable Object value, String rule) {
        String text = value instanceof String ? "\"" + value + "\"" : String.valueOf(value);
        if (text.length() > SHOWN) {
            text = text.substring(0, SHOWN) + "...";
        }
        return new IllegalArgumentException("LoraConfig." + field + " = " + text + ": " + rule);
    }

    /** Copies names in their order, each once; none may be null or blank. */
    static Set<String> names(String field, Collection<? extends @Nullable String> values) {
        Set<String> names = new LinkedHashSet<>();
        for (String name : values) {
            if (name == null || name.isBlank()) {
                throw field(field, values, "holds an empty name; every entry must name a module");
            }
            names.add(name);
        }
        return java.util.Collections.unmodifiableSet(names);
    }

    /** Compiles a Python regular expression, naming the field if it is wrong. */
    static java.util.regex.Pattern regex(String field, String regex) {
        return regex(field, regex, regex);
    }

    /** Compiles {@code whole}, which contains the given {@code regex}. */
    static java.util.regex.Pattern regex(String field, String regex, String whole) {
        try {
            return PythonRegex.compile(whole);
        } catch (IllegalArgumentException e) {
            throw field(field, regex, "is not a regular expression of Python's re: " + e.getMessage());
        }
    }
}
