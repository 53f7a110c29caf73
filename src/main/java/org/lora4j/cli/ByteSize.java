package org.lora4j.cli;

import java.util.Locale;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import picocli.CommandLine.ITypeConverter;
import picocli.CommandLine.TypeConversionException;

/** Reads sizes such as 512m or 2g. */
final class ByteSize implements ITypeConverter<Long> {
    private static final Pattern SIZE = Pattern.compile("(\\d{1,12})([kmg]?)i?b?");

    @Override
    public Long convert(String text) {
        Matcher size = SIZE.matcher(text.toLowerCase(Locale.ROOT));
        if (!size.matches()) {
            throw new TypeConversionException("'" + text + "' is no size: write it as 512m or 2g");
        }
        int shift = size.group(2).isEmpty() ? 0 : 10 * (1 + "kmg".indexOf(size.group(2)));
        return Long.parseLong(size.group(1)) << shift;
    }
}
