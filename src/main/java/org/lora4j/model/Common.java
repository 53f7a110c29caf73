package org.lora4j.model;

import java.util.Collection;
import java.util.HashSet;
import java.util.Objects;
import java.util.Set;
import org.jspecify.annotations.Nullable;

/**
 * What the parts of something say together: the value all of them have, or where they differ what PEFT calls "irregular",
 * the sign of a model in a state that was not meant.
 *
 * @param value null if they differ
 */
public record Common<T>(@Nullable T value) {
    /** The common value of some parts, which are not none. */
    static <T> Common<T> of(Collection<T> values) {
        Set<T> distinct = new HashSet<>(values);
        return distinct.size() == 1 ? new Common<>(distinct.iterator().next()) : irregular();
    }

    static <T> Common<T> irregular() {
        return new Common<>(null);
    }

    public boolean isIrregular() {
        return value == null;
    }

    /** Whether all parts have this value. */
    public boolean is(T expected) {
        return Objects.equals(value, expected);
    }

    /** The value, or {@code irregular}. */
    @Override
    public String toString() {
        return value == null ? "irregular" : value.toString();
    }
}
