package org.lora4j.serve.http;

import java.math.BigInteger;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.FormatException;
import org.lora4j.format.StrictJson;

/** The fields of a request's JSON. A field that is null counts as absent; one of another type is refused by its name. */
final class Fields {
    private final Map<String, @Nullable Object> values;
    private final String path;

    private Fields(Map<String, @Nullable Object> values, String path) {
        this.values = values;
        this.path = path;
    }

    static Fields parse(byte[] body) {
        try {
            return new Fields(StrictJson.parseObject(body, "the body"), "");
        } catch (FormatException e) {
            throw ApiException.invalid(null, String.valueOf(e.getMessage()));
        }
    }

    /** The name of a field as a client sees it. */
    String name(String field) {
        return path + field;
    }

    boolean has(String field) {
        return values.get(field) != null;
    }

    @Nullable
    Object value(String field) {
        return values.get(field);
    }

    @Nullable
    String text(String field) {
        Object value = values.get(field);
        if (value == null || value instanceof String) {
            return (String) value;
        }
        throw wrong(field, value, "a string");
    }

    String requiredText(String field) {
        String text = text(field);
        if (text == null || text.isEmpty()) {
            throw ApiException.invalid(name(field), name(field) + " is missing: give it as a string");
        }
        return text;
    }

    boolean flag(String field) {
        Object value = values.get(field);
        if (value == null || value instanceof Boolean) {
            return Boolean.TRUE.equals(value);
        }
        throw wrong(field, value, "true or false");
    }

    double number(String field, double absent) {
        Object value = values.get(field);
        if (value == null) {
            return absent;
        }
        if (value instanceof Number number) {
            return number.doubleValue();
        }
        throw wrong(field, value, "a number");
    }

    long integer(String field, long least, long most, long absent) {
        Object value = values.get(field);
        if (value == null) {
            return absent;
        }
        Long integer = whole(value);
        if (integer == null || integer < least || integer > most) {
            throw wrong(field, value, "an integer from " + least + " to " + most);
        }
        return integer;
    }

    /** An integer, also when it is written as 3.0. */
    static @Nullable Long whole(@Nullable Object value) {
        if (value instanceof Long integer) {
            return integer;
        }
        return value instanceof Double number && number == Math.rint(number) && Math.abs(number) < 1L << 53
                ? (Long) number.longValue()
                : null;
    }

    /** A seed is any integer; of a large one the lowest 64 bits count. */
    @Nullable
    Long seed(String field) {
        Object value = values.get(field);
        if (value == null) {
            return null;
        }
        Long integer = value instanceof BigInteger large ? (Long) large.longValue() : whole(value);
        if (integer == null) {
            throw wrong(field, value, "an integer");
        }
        return integer;
    }

    @Nullable
    Fields object(String field) {
        Object value = values.get(field);
        return value == null ? null : object(value, field);
    }

    /** The objects of a list; none if it is absent. */
    List<Fields> objects(String field) {
        Object value = values.get(field);
        if (value == null) {
            return List.of();
        }
        if (!(value instanceof List<?> list)) {
            throw wrong(field, value, "a list of objects");
        }
        List<Fields> objects = new ArrayList<>();
        for (Object each : list) {
            objects.add(object(each, field + "[" + objects.size() + "]"));
        }
        return objects;
    }

    @SuppressWarnings("unchecked") // objects of parsed JSON have strings as keys
    private Fields object(@Nullable Object value, String field) {
        if (value instanceof Map<?, ?> map) {
            return new Fields((Map<String, @Nullable Object>) map, name(field) + ".");
        }
        throw wrong(field, value, "an object");
    }

    ApiException wrong(String field, @Nullable Object value, String rule) {
        String shown = String.valueOf(value);
        return ApiException.invalid(
                name(field),
                name(field) + " is " + (shown.length() > 60 ? shown.substring(0, 57) + "..." : shown) + " but must be "
                        + rule);
    }
}
