package org.lora4j.config;

import java.util.regex.Pattern;
import java.util.regex.PatternSyntaxException;

/**
 * Compiles regular expressions written for Python's {@code re}, as adapter configurations contain them.
 *
 * <p>{@code re.fullmatch} is {@link java.util.regex.Matcher#matches()}, {@code re.match} is
 * {@link java.util.regex.Matcher#lookingAt()} on the result. Where the two languages write the same thing differently
 * the expression is rewritten: {@code (?P<name>...)}, {@code (?P=name)}, {@code (?#comment)}, {@code \Z}, {@code \v},
 * octal escapes, {@code {,n}}, literal braces, and {@code [} and {@code &&} inside a class. Classes such as
 * {@code \w} are Unicode and only {@code \n} ends a line, as in Python. What Python refuses is refused. Not supported,
 * and refused: {@code (?x)}, {@code (?L)} and conditions {@code (?(1)...)}.
 */
public final class PythonRegex {
    /** Longer expressions are refused: they are not module names, and compiling them takes stack and time. */
    public static final int MAX_LENGTH = 65_536;

    private PythonRegex() {}

    /**
     * Compiles an expression.
     *
     * <p>An underscore in the name of a group becomes {@code U95U}, since Java allows none.
     *
     * @throws IllegalArgumentException saying what is wrong and at which character
     */
    public static Pattern compile(String regex) {
        if (regex.length() > MAX_LENGTH) {
            throw new IllegalArgumentException("it has " + regex.length() + " characters; use at most " + MAX_LENGTH);
        }
        String translated = new PythonRegexTranslator(regex).translate();
        try {
            return Pattern.compile(translated, Pattern.UNIX_LINES | Pattern.UNICODE_CHARACTER_CLASS);
        } catch (PatternSyntaxException e) {
            throw new IllegalArgumentException(e.getDescription() + " near character " + e.getIndex(), e);
        }
    }
}
