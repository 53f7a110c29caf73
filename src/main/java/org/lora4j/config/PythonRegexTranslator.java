package org.lora4j.config;

/** Rewrites one regular expression of Python's {@code re} for {@link java.util.regex.Pattern}, left to right. */
final class PythonRegexTranslator {
    private static final int MAX_DEPTH = 100;

    private final String in;
    private final StringBuilder out = new StringBuilder();
    private int at;
    private int depth;
    private int groups;

    PythonRegexTranslator(String regex) {
        this.in = regex;
    }

    String translate() {
        while (at < in.length()) {
            char c = in.charAt(at);
            switch (c) {
                case '\\' -> escape(false);
                case '[' -> characterClass();
                case '(' -> group();
                case ')' -> {
                    depth--;
                    copy(1);
                }
                case '{' -> brace();
                case '}' -> literal("\\}", 1);
                default -> copy(1);
            }
        }
        return out.toString();
    }

    private void group() {
        if (++depth > MAX_DEPTH) {
            throw wrong("groups are nested deeper than " + MAX_DEPTH);
        }
        if (!in.startsWith("(?", at)) {
            groups++;
            copy(1);
        } else if (in.startsWith("(?P<", at)) {
            groups++;
            int end = find('>', at + 4, "the name of a group");
            literal("(?<" + groupName(at + 4, end) + ">", end + 1 - at);
        } else if (in.startsWith("(?P=", at)) {
            int end = find(')', at + 4, "a reference to a group");
            literal("\\k<" + groupName(at + 4, end) + ">", end + 1 - at);
            depth--;
        } else if (in.startsWith("(?#", at)) {
            at = find(')', at + 3, "a comment") + 1;
            depth--;
        } else if (startsWithAny("(?:", "(?=", "(?!", "(?>")) {
            copy(3);
        } else if (startsWithAny("(?<=", "(?<!")) {
            copy(4);
        } else {
            flags();
        }
    }

    /** {@code (?ims)} at the start, or {@code (?i-m:...)} around a part. */
    private void flags() {
        int end = at + 2;
        while (end < in.length() && (Character.isLetter(in.charAt(end)) || in.charAt(end) == '-')) {
            end++;
        }
        String flags = in.substring(at + 2, end);
        boolean scoped = end < in.length() && in.charAt(end) == ':';
        boolean global = end < in.length() && in.charAt(end) == ')' && !flags.contains("-");
        if (flags.isEmpty() || !flags.matches("[aimsu]*(-[ims]+)?") || !(scoped || global)) {
            throw wrong("(?" + flags + " is not a group this version understands");
        }
        if (global && at != 0) {
            throw wrong("global flags must stand at the start of the expression");
        }
        boolean ascii = flags.contains("a");
        int minus = flags.indexOf('-') < 0 ? flags.length() : flags.indexOf('-');
        StringBuilder on = new StringBuilder();
        StringBuilder off = new StringBuilder(minus < flags.length() ? flags.substring(minus + 1) : "");
        for (char flag : flags.substring(0, minus).toCharArray()) {
            switch (flag) {
                case 'i' -> on.append(ascii ? "i" : "iu");
                case 'm', 's' -> on.append(flag);
                case 'a' -> off.append('U');
                default -> on.append('U');
            }
        }
        literal("(?" + on + (off.isEmpty() ? "" : "-" + off) + (scoped ? ":" : ")"), end + 1 - at);
        if (global) {
            depth--;
        }
    }

    private void characterClass() {
        int start = at;
        copy(1);
        if (at < in.length() && in.charAt(at) == '^') {
            copy(1);
        }
        boolean first = true;
        while (true) {
            if (at >= in.length()) {
                at = start;
                throw wrong("the class opened by [ is not closed");
            }
            char c = in.charAt(at);
            if (c == ']' && !first) {
                copy(1);
                return;
            }
            switch (c) {
                case '\\' -> escape(true);
                case '[', ']', '&', '^' -> literal("\\" + c, 1);
                default -> copy(1);
            }
            first = false;
        }
    }

    /** A repetition is copied; any other brace is a character like all others. */
    private void brace() {
        int end = in.indexOf('}', at);
        String inside = end < 0 ? "" : in.substring(at + 1, end);
        if (inside.matches("[0-9]+(,[0-9]*)?")) {
            copy(end + 1 - at);
        } else if (inside.matches(",[0-9]*")) {
            literal("{0" + inside + "}", end + 1 - at);
        } else {
            literal("\\{", 1);
        }
    }

    private void escape(boolean inClass) {
        if (at + 1 >= in.length()) {
            throw wrong("a backslash ends the expression");
        }
        char c = in.charAt(at + 1);
        if (c == '0' || (inClass && c >= '1' && c <= '7')) {
            octal();
        } else if (c >= '1' && c <= '9') {
            reference();
        } else if (c == 'v') {
            literal("\\x0B", 2);
        } else if (c == 'b' && inClass) {
            literal("\\x08", 2);
        } else if (c == 'Z' && !inClass) {
            literal("\\z", 2);
        } else if (c == 'x') {
            hex(2);
        } else if (c == 'u') {
            hex(4);
        } else if (c == 'U') {
            hex(8);
        } else if ((inClass ? "afnrtdDsSwW" : "afnrtdDsSwWAbB").indexOf(c) >= 0) {
            copy(2);
        } else if (c < 128 && Character.isLetterOrDigit(c)) {
            throw wrong("\\" + c + " has no meaning");
        } else if (c < 128) {
            copy(2);
        } else {
            at++;
            copy(1);
        }
    }

    private void octal() {
        int end = at + 1;
        while (end < in.length() && end < at + 4 && in.charAt(end) >= '0' && in.charAt(end) <= '7') {
            end++;
        }
        int value = Integer.parseInt(in.substring(at + 1, end), 8);
        if (value > 0377) {
            throw wrong("the octal escape is above \\377");
        }
        literal(String.format("\\x%02X", value), end - at);
    }

    /** Up to two digits of a group's number; Java would read on, so the reference is closed off. */
    private void reference() {
        int end = at + 2;
        if (end < in.length() && Character.digit(in.charAt(end), 10) >= 0 && in.charAt(end) < 128) {
            end++;
        }
        if (Integer.parseInt(in.substring(at + 1, end)) > groups) {
            throw wrong("there is no group " + in.substring(at + 1, end) + " before its reference");
        }
        literal("(?:" + in.substring(at, end) + ")", end - at);
    }

    private void hex(int digits) {
        int end = at + 2 + digits;
        String text = end <= in.length() ? in.substring(at + 2, end) : "";
        if (!text.matches("[0-9a-fA-F]{" + digits + "}") || Long.parseLong(text, 16) > Character.MAX_CODE_POINT) {
            throw wrong("\\" + in.charAt(at + 1) + " needs " + digits + " hexadecimal digits of a character");
        }
        literal("\\x{" + text + "}", end - at);
    }

    private String groupName(int from, int to) {
        String name = in.substring(from, to);
        if (!name.matches("[A-Za-z_][A-Za-z0-9_]*")) {
            throw wrong("\"" + name + "\" is not the name of a group");
        }
        String renamed = name.replace("_", "U95U");
        return Character.isLetter(renamed.charAt(0)) ? renamed : "U" + renamed;
    }

    private int find(char close, int from, String what) {
        int end = in.indexOf(close, from);
        if (end < 0) {
            throw wrong(what + " is not closed");
        }
        return end;
    }

    private boolean startsWithAny(String... starts) {
        for (String start : starts) {
            if (in.startsWith(start, at)) {
                return true;
            }
        }
        return false;
    }

    private void copy(int count) {
        out.append(in, at, Math.min(in.length(), at + count));
        at += count;
    }

    private void literal(String text, int consumed) {
        out.append(text);
        at += consumed;
    }

    private IllegalArgumentException wrong(String what) {
        return new IllegalArgumentException(what + ", at character " + at);
    }
}
