package org.lora4j.format;

import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.SafetensorsException.Defect;
import tools.jackson.core.JacksonException;
import tools.jackson.core.JsonParser;
import tools.jackson.core.JsonToken;
import tools.jackson.core.ObjectReadContext;
import tools.jackson.core.StreamReadConstraints;
import tools.jackson.core.TokenStreamFactory;
import tools.jackson.core.json.JsonFactory;

/** Parses the JSON of one safetensors header, entry by entry; nothing is nested deeper than its place allows. */
final class SafetensorsHeaderReader {
    /** The depth to which values of unknown fields are skipped. */
    static final int MAX_DEPTH = 32;

    private static final JsonFactory FACTORY = JsonFactory.builder()
            .streamReadConstraints(StreamReadConstraints.builder()
                    .maxNestingDepth(2 * MAX_DEPTH)
                    .maxStringLength(SafetensorsHeader.MAX_BYTES)
                    .build())
            .disable(TokenStreamFactory.Feature.CANONICALIZE_PROPERTY_NAMES)
            .disable(TokenStreamFactory.Feature.INTERN_PROPERTY_NAMES)
            .build();

    final Map<String, String> metadata = new LinkedHashMap<>();
    final Map<String, TensorInfo> tensors = new LinkedHashMap<>();

    private final byte[] json;
    private final String file;

    SafetensorsHeaderReader(byte[] json, String file) {
        this.json = json;
        this.file = file;
    }

    void read() throws SafetensorsException {
        if (json.length == 0 || json[0] != '{') {
            throw wrong(Defect.HEADER_START, "the header does not start with {; check that it is a safetensors file");
        }
        int invalid = Utf8.firstInvalid(json, json.length);
        if (invalid >= 0) {
            throw wrong(
                    Defect.HEADER_NOT_UTF8,
                    "the header is not UTF-8 at byte " + invalid + "; get the file from its source again");
        }
        try (JsonParser parser = FACTORY.createParser(ObjectReadContext.empty(), Utf8.reader(json))) {
            parser.nextToken();
            boolean hasMetadata = false;
            while (next(parser) != JsonToken.END_OBJECT) {
                String name = name(parser);
                next(parser);
                if (!name.equals(SafetensorsHeader.METADATA)) {
                    if (tensors.containsKey(name)) {
                        throw duplicate("tensor", name);
                    }
                    tensors.put(name, tensor(parser, name));
                } else if (hasMetadata) {
                    throw duplicate("entry", name);
                } else {
                    hasMetadata = true;
                    metadata(parser);
                }
            }
            padding(parser);
        } catch (JacksonException e) {
            throw new SafetensorsException(
                    Defect.HEADER_NOT_JSON,
                    file + ": the header is not acceptable JSON: " + e.getOriginalMessage()
                            + "; get the file from its source again",
                    e);
        }
    }

    /** Checks that only spaces follow the object. */
    private void padding(JsonParser parser) throws SafetensorsException {
        int last = json.length - 1;
        while (json[last] == ' ') {
            last--;
        }
        boolean clean;
        try {
            clean = json[last] == '}' && parser.nextToken() == null;
        } catch (JacksonException e) {
            clean = false;
        }
        if (!clean) {
            throw wrong(
                    Defect.HEADER_PADDING,
                    "something other than spaces follows the JSON of the header; get the file from its source again");
        }
    }

    private void metadata(JsonParser parser) throws SafetensorsException {
        if (parser.currentToken() == JsonToken.VALUE_NULL) {
            return;
        }
        if (parser.currentToken() != JsonToken.START_OBJECT) {
            skip(parser);
            throw wrong(Defect.METADATA_NOT_STRINGS, "__metadata__ is not an object; write strings by name");
        }
        while (next(parser) != JsonToken.END_OBJECT) {
            String key = name(parser);
            if (next(parser) != JsonToken.VALUE_STRING) {
                skip(parser);
                throw wrong(
                        Defect.METADATA_NOT_STRINGS,
                        "the value of \"" + SafetensorsHeader.shorten(key)
                                + "\" in __metadata__ is not a string; write it as one");
            }
            if (metadata.put(key, unicode(parser.getString())) != null) {
                throw duplicate("metadata", key);
            }
        }
    }

    private TensorInfo tensor(JsonParser parser, String name) throws SafetensorsException {
        if (parser.currentToken() != JsonToken.START_OBJECT) {
            skip(parser);
            throw bad(Defect.BAD_ENTRY, name, "is not an object with dtype, shape and data_offsets");
        }
        DType dtype = null;
        long[] shape = null;
        long[] offsets = null;
        while (next(parser) != JsonToken.END_OBJECT) {
            String field = name(parser);
            next(parser);
            switch (field) {
                case "dtype" -> {
                    once(dtype, name, field);
                    dtype = dtype(parser, name);
                }
                case "shape" -> {
                    once(shape, name, field);
                    shape = numbers(parser, Defect.BAD_SHAPE, name, "the shape");
                }
                case "data_offsets" -> {
                    once(offsets, name, field);
                    offsets = numbers(parser, Defect.BAD_OFFSETS, name, "data_offsets");
                }
                default -> skip(parser);
            }
        }
        if (dtype == null || shape == null || offsets == null) {
            String missing = dtype == null ? "dtype" : shape == null ? "shape" : "data_offsets";
            throw bad(Defect.BAD_ENTRY, name, "has no " + missing);
        }
        if (offsets.length != 2 || offsets[1] < offsets[0]) {
            throw bad(
                    Defect.BAD_OFFSETS,
                    name,
                    "has data_offsets " + Arrays.toString(offsets) + ", which are not [begin, end]");
        }
        return new TensorInfo(name, dtype, shape, offsets[0], offsets[1]);
    }

    private void once(@Nullable Object value, String name, String field) throws SafetensorsException {
        if (value != null) {
            throw bad(Defect.DUPLICATE_KEY, name, "has " + field + " twice");
        }
    }

    private DType dtype(JsonParser parser, String name) throws SafetensorsException {
        if (parser.currentToken() != JsonToken.VALUE_STRING) {
            skip(parser);
            throw bad(Defect.BAD_ENTRY, name, "has a dtype that is not a string");
        }
        String text = parser.getString();
        DType dtype = DType.named(text);
        if (dtype == null) {
            throw SafetensorsHeader.tensor(
                    Defect.UNKNOWN_DTYPE,
                    file,
                    name,
                    "has the unknown dtype \"" + SafetensorsHeader.shorten(text) + "\"",
                    "convert it to one of " + Arrays.toString(DType.values()));
        }
        return dtype;
    }

    /** An array of whole numbers of at least 0. */
    private long[] numbers(JsonParser parser, Defect defect, String name, String what) throws SafetensorsException {
        if (parser.currentToken() != JsonToken.START_ARRAY) {
            skip(parser);
            throw bad(defect, name, "needs a list of whole numbers as " + what);
        }
        long[] numbers = new long[SafetensorsHeader.MAX_RANK];
        int count = 0;
        while (next(parser) != JsonToken.END_ARRAY) {
            if (count == numbers.length) {
                throw bad(defect, name, "has more than " + numbers.length + " numbers in " + what);
            }
            if (parser.currentToken() != JsonToken.VALUE_NUMBER_INT) {
                skip(parser);
                throw bad(defect, name, "needs whole numbers in " + what);
            }
            JsonParser.NumberType type = parser.getNumberType();
            boolean fits = type == JsonParser.NumberType.INT || type == JsonParser.NumberType.LONG;
            if (parser.getBigIntegerValue().signum() < 0) {
                throw bad(defect, name, "has the negative number " + parser.getString() + " in " + what);
            }
            if (!fits) {
                throw bad(Defect.SIZE_OVERFLOW, name, "has a number beyond 63 bits in " + what);
            }
            numbers[count++] = parser.getLongValue();
        }
        return Arrays.copyOf(numbers, count);
    }

    /** Passes over the current value, whatever it is. */
    private void skip(JsonParser parser) throws SafetensorsException {
        int depth = 0;
        do {
            JsonToken token = depth == 0 ? parser.currentToken() : next(parser);
            if (token.isStructStart() && ++depth > MAX_DEPTH) {
                throw wrong(
                        Defect.HEADER_TOO_DEEP,
                        "the header is nested deeper than " + MAX_DEPTH + "; check that it is a safetensors file");
            } else if (token.isStructEnd()) {
                depth--;
            }
        } while (depth > 0);
    }

    private static JsonToken next(JsonParser parser) {
        JsonToken token = parser.nextToken();
        if (token == null) {
            throw new tools.jackson.core.exc.StreamReadException(parser, "it ends early");
        }
        return token;
    }

    private String name(JsonParser parser) throws SafetensorsException {
        return unicode(parser.currentName());
    }

    private String unicode(String string) throws SafetensorsException {
        if (!JsonText.isUnicode(string)) {
            throw wrong(
                    Defect.HEADER_NOT_JSON, "a string holds half a surrogate pair; get the file from its source again");
        }
        return string;
    }

    private SafetensorsException duplicate(String what, String name) {
        return wrong(
                Defect.DUPLICATE_KEY,
                what + " \"" + SafetensorsHeader.shorten(name) + "\" occurs twice; get the file from its source again");
    }

    private SafetensorsException bad(Defect defect, String name, String what) {
        return SafetensorsHeader.tensor(defect, file, name, what, "write the file again with a correct program");
    }

    private SafetensorsException wrong(Defect defect, String what) {
        return new SafetensorsException(defect, file + ": " + what);
    }
}
