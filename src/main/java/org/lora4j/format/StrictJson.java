package org.lora4j.format;

import java.io.IOException;
import java.math.BigInteger;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import tools.jackson.core.JacksonException;
import tools.jackson.core.JsonParser;
import tools.jackson.core.JsonToken;
import tools.jackson.core.ObjectReadContext;
import tools.jackson.core.StreamReadConstraints;
import tools.jackson.core.StreamReadFeature;
import tools.jackson.core.TokenStreamFactory;
import tools.jackson.core.json.JsonFactory;

/**
 * Reads small JSON files that nobody vouches for: of limited size and depth, no name twice in one object, nothing after
 * the end.
 */
public final class StrictJson {
    /** Deeper nesting is refused. */
    public static final int MAX_DEPTH = 64;

    private static final JsonFactory FACTORY = JsonFactory.builder()
            .streamReadConstraints(StreamReadConstraints.builder()
                    .maxNestingDepth(MAX_DEPTH)
                    .maxStringLength(16 << 20)
                    .build())
            .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
            .disable(TokenStreamFactory.Feature.CANONICALIZE_PROPERTY_NAMES)
            .disable(TokenStreamFactory.Feature.INTERN_PROPERTY_NAMES)
            .build();

    private StrictJson() {}

    /**
     * Reads a file that holds one object.
     *
     * @param maxBytes the largest file to accept
     * @return its entries in the file's order; values are null, Boolean, Long, BigInteger, Double, String, List or Map
     * @throws FormatException naming the file, if it is too large or is not such JSON
     */
    public static Map<String, @Nullable Object> readObject(Path file, long maxBytes) throws IOException {
        long size = Files.size(file);
        if (size > maxBytes) {
            throw new FormatException(
                    file + ": has " + size + " bytes, more than the " + maxBytes + " accepted; check what it is");
        }
        return parseObject(Files.readAllBytes(file), file.toString());
    }

    /**
     * Parses one object.
     *
     * @param json UTF-8
     * @param source what the bytes are, for messages
     */
    public static Map<String, @Nullable Object> parseObject(byte[] json, String source) throws FormatException {
        int invalid = Utf8.firstInvalid(json, json.length);
        if (invalid >= 0) {
            throw new FormatException(source + ": is not UTF-8 at byte " + invalid + "; write it again as UTF-8");
        }
        try (JsonParser parser = FACTORY.createParser(ObjectReadContext.empty(), Utf8.reader(json))) {
            if (parser.nextToken() != JsonToken.START_OBJECT) {
                throw new FormatException(source + ": must be one JSON object; check what it is");
            }
            Map<String, @Nullable Object> object = object(parser, source);
            if (parser.nextToken() != null) {
                throw new FormatException(source + ": text follows the JSON object; remove it");
            }
            return object;
        } catch (JacksonException e) {
            throw new FormatException(source + ": is not acceptable JSON: " + e.getMessage(), e);
        }
    }

    private static Map<String, @Nullable Object> object(JsonParser parser, String source) throws FormatException {
        Map<String, @Nullable Object> object = new LinkedHashMap<>();
        while (parser.nextToken() != JsonToken.END_OBJECT) {
            String name = parser.currentName();
            parser.nextToken();
            object.put(unicode(name, source), value(parser, source));
        }
        return object;
    }

    private static @Nullable Object value(JsonParser parser, String source) throws FormatException {
        JsonToken token = parser.currentToken();
        return switch (token) {
            case START_OBJECT -> object(parser, source);
            case START_ARRAY -> {
                List<@Nullable Object> list = new ArrayList<>();
                while (parser.nextToken() != JsonToken.END_ARRAY) {
                    list.add(value(parser, source));
                }
                yield list;
            }
            case VALUE_STRING -> unicode(parser.getString(), source);
            case VALUE_NUMBER_INT -> {
                BigInteger number = parser.getBigIntegerValue();
                yield number.bitLength() < Long.SIZE ? (Object) number.longValue() : number;
            }
            case VALUE_NUMBER_FLOAT -> {
                double number = parser.getDoubleValue();
                if (!Double.isFinite(number)) {
                    throw new FormatException(source + ": the number " + parser.getString() + " is too large");
                }
                yield number;
            }
            case VALUE_TRUE -> true;
            case VALUE_FALSE -> false;
            default -> null;
        };
    }

    private static String unicode(String string, String source) throws FormatException {
        if (!JsonText.isUnicode(string)) {
            throw new FormatException(source + ": a string holds half a surrogate pair; write it again as Unicode");
        }
        return string;
    }
}
