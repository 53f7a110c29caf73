package org.lora4j.format;

import java.math.BigDecimal;
import java.math.MathContext;
import java.math.RoundingMode;
import java.util.Comparator;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.jspecify.annotations.Nullable;

/** Writes JSON as Python's {@code json.dumps(value, indent=2, sort_keys=True)} does. */
final class JsonText {
    /** The order of Python's strings, and of Rust's: by code point. */
    static final Comparator<String> BY_CODE_POINT = JsonText::compare;

    private final StringBuilder out = new StringBuilder();

    private JsonText() {}

    /**
     * The text of a value.
     *
     * @param value null, Boolean, Number, String, List, or Map with strings as keys; a {@link Ordered} map keeps its
     *     order
     */
    static String of(@Nullable Object value) {
        JsonText text = new JsonText();
        text.append(value, "\n");
        return text.out.toString();
    }

    /** A map that is written in its own order, because its order means something. */
    record Ordered(Map<String, ?> entries) {}

    private void append(@Nullable Object value, String newline) {
        if (value instanceof String string) {
            quote(out, string, true);
        } else if (value instanceof Double || value instanceof Float) {
            out.append(number(((Number) value).doubleValue()));
        } else if (value instanceof List<?> list) {
            String separator = "[";
            for (Object item : list) {
                out.append(separator).append(newline).append("  ");
                append(item, newline + "  ");
                separator = ",";
            }
            out.append(list.isEmpty() ? "[]" : newline + "]");
        } else if (value instanceof Ordered ordered) {
            entries(ordered.entries(), newline);
        } else if (value instanceof Map<?, ?> map) {
            Map<String, @Nullable Object> sorted = new TreeMap<>(BY_CODE_POINT);
            map.forEach((key, item) -> sorted.put((String) key, item));
            entries(sorted, newline);
        } else {
            out.append(value);
        }
    }

    private void entries(Map<String, ?> map, String newline) {
        String separator = "{";
        for (Map.Entry<String, ?> entry : map.entrySet()) {
            out.append(separator).append(newline).append("  ");
            quote(out, entry.getKey(), true);
            out.append(": ");
            append(entry.getValue(), newline + "  ");
            separator = ",";
        }
        out.append(map.isEmpty() ? "{}" : newline + "}");
    }

    /** Appends a string in quotes; characters above ASCII are escaped only on request. */
    static void quote(StringBuilder out, String string, boolean ascii) {
        out.append('"');
        for (int i = 0; i < string.length(); i++) {
            char c = string.charAt(i);
            switch (c) {
                case '"' -> out.append("\\\"");
                case '\\' -> out.append("\\\\");
                case '\b' -> out.append("\\b");
                case '\f' -> out.append("\\f");
                case '\n' -> out.append("\\n");
                case '\r' -> out.append("\\r");
                case '\t' -> out.append("\\t");
                default -> {
                    if (c < ' ' || (ascii && c > '~')) {
                        out.append(String.format("\\u%04x", (int) c));
                    } else {
                        out.append(c);
                    }
                }
            }
        }
        out.append('"');
    }

    /** The shortest decimal that reads back as this double, in the form of Python's {@code repr}. */
    static String number(double value) {
        if (value == 0) {
            return 1 / value < 0 ? "-0.0" : "0.0";
        }
        BigDecimal shortest = shortest(value);
        String digits = shortest.unscaledValue().abs().toString();
        int exponent = digits.length() - 1 - shortest.scale();
        StringBuilder text = new StringBuilder(value < 0 ? "-" : "");
        if (exponent >= -4 && exponent < 16) {
            if (exponent < 0) {
                text.append("0.").append("0".repeat(-exponent - 1)).append(digits);
            } else if (digits.length() <= exponent + 1) {
                text.append(digits)
                        .append("0".repeat(exponent + 1 - digits.length()))
                        .append(".0");
            } else {
                text.append(digits, 0, exponent + 1).append('.').append(digits, exponent + 1, digits.length());
            }
        } else {
            text.append(digits.charAt(0));
            if (digits.length() > 1) {
                text.append('.').append(digits, 1, digits.length());
            }
            text.append(exponent < 0 ? "e-" : "e+");
            text.append(Math.abs(exponent) < 10 ? "0" : "").append(Math.abs(exponent));
        }
        return text.toString();
    }

    /** Tries 1 to 17 digits, and for each the two neighbours: at a power of two only the farther one may read back. */
    private static BigDecimal shortest(double value) {
        BigDecimal exact = new BigDecimal(value);
        for (int digits = 1; ; digits++) {
            for (RoundingMode mode : List.of(RoundingMode.HALF_EVEN, RoundingMode.UP, RoundingMode.DOWN)) {
                BigDecimal rounded = exact.round(new MathContext(digits, mode));
                if (rounded.doubleValue() == value) {
                    return rounded.stripTrailingZeros();
                }
            }
        }
    }

    private static int compare(String a, String b) {
        int length = Math.min(a.length(), b.length());
        for (int i = 0; i < length; i++) {
            char x = a.charAt(i);
            char y = b.charAt(i);
            if (x != y) {
                // A surrogate stands for a code point above every other char.
                boolean highX = Character.isSurrogate(x);
                boolean highY = Character.isSurrogate(y);
                return highX == highY ? Character.compare(x, y) : highX ? 1 : -1;
            }
        }
        return Integer.compare(a.length(), b.length());
    }

    /** Whether every surrogate in a string is one of a pair, so that the string has a UTF-8 form. */
    static boolean isUnicode(String string) {
        for (int i = 0; i < string.length(); i++) {
            char c = string.charAt(i);
            if (Character.isHighSurrogate(c)
                    && i + 1 < string.length()
                    && Character.isLowSurrogate(string.charAt(i + 1))) {
                i++;
            } else if (Character.isSurrogate(c)) {
                return false;
            }
        }
        return true;
    }
}
