package org.lora4j.format;

import java.math.BigInteger;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import org.jspecify.annotations.Nullable;

/**
 * What bitsandbytes stores beside a weight of 4 bits in {@code <name>.weight.quant_state.bitsandbytes__nf4}: a tensor of
 * bytes that holds JSON.
 *
 * @param type {@code nf4} or {@code fp4}
 * @param blockSize elements that share a scale
 * @param dtype the type the weight had, as PyTorch names it: {@code float32}, {@code float16} or {@code bfloat16}
 * @param shape the sizes of the weight
 * @param nested how the scales are quantized themselves, or null if they are float32
 */
public record QuantState(
        String type,
        int blockSize,
        String dtype,
        List<Long> shape,
        @Nullable Nested nested) {
    private static final Set<String> KEYS = Set.of("quant_type", "blocksize", "dtype", "shape");
    private static final Set<String> NESTED_KEYS = Set.of("nested_blocksize", "nested_dtype", "nested_offset");

    /**
     * The quantization of the scales.
     *
     * @param blockSize scales that share a scale of their own
     * @param dtype the type the scales had
     * @param offset what was taken from each scale before it was quantized
     */
    public record Nested(int blockSize, String dtype, double offset) {}

    public QuantState {
        shape = List.copyOf(shape);
    }

    /**
     * Reads the JSON.
     *
     * @param source what the bytes are, for messages
     * @throws FormatException if it is not such JSON, or if bitsandbytes would not know a key
     */
    public static QuantState parse(byte[] json, String source) throws FormatException {
        Map<String, @Nullable Object> object = StrictJson.parseObject(json, source);
        boolean nested = object.keySet().stream().anyMatch(NESTED_KEYS::contains);
        Set<String> wanted = new TreeSet<>(KEYS);
        wanted.addAll(nested ? NESTED_KEYS : Set.of());
        if (!object.keySet().equals(wanted)) {
            throw new FormatException(source + ": has the keys " + new TreeSet<>(object.keySet()) + ", not " + wanted
                    + "; save the model with bitsandbytes 0.41 or newer");
        }
        String type = text(object, "quant_type", source);
        int blockSize = size(object, "blocksize", source);
        String dtype = text(object, "dtype", source);
        if (!(object.get("shape") instanceof List<?> sizes)
                || !sizes.stream().allMatch(size -> size instanceof Long n && n >= 0)) {
            throw new FormatException(
                    source + ": \"shape\" is " + object.get("shape") + ", not a list of sizes; save the model again");
        }
        List<Long> shape = sizes.stream().map(Long.class::cast).toList();
        return new QuantState(type, blockSize, dtype, shape, nested ? nested(object, source) : null);
    }

    private static Nested nested(Map<String, @Nullable Object> object, String source) throws FormatException {
        Object offset = object.get("nested_offset");
        if (!(offset instanceof Number number) || offset instanceof BigInteger) {
            throw new FormatException(
                    source + ": \"nested_offset\" is " + offset + ", not a number; save the model again");
        }
        return new Nested(
                size(object, "nested_blocksize", source), text(object, "nested_dtype", source), number.doubleValue());
    }

    private static String text(Map<String, @Nullable Object> object, String key, String source) throws FormatException {
        if (object.get(key) instanceof String text) {
            return text;
        }
        throw new FormatException(
                source + ": \"" + key + "\" is " + object.get(key) + ", not a string; save the model again");
    }

    private static int size(Map<String, @Nullable Object> object, String key, String source) throws FormatException {
        if (object.get(key) instanceof Long size && size > 0 && size <= Integer.MAX_VALUE) {
            return size.intValue();
        }
        throw new FormatException(
                source + ": \"" + key + "\" is " + object.get(key) + ", not a size; save the model again");
    }

    /** The JSON in UTF-8, byte for byte as bitsandbytes writes it. */
    public byte[] json() {
        Map<String, String> fields = new LinkedHashMap<>();
        fields.put("quant_type", quoted(type));
        fields.put("blocksize", Integer.toString(blockSize));
        fields.put("dtype", quoted(dtype));
        fields.put("shape", Arrays.toString(shape.toArray()));
        if (nested != null) {
            fields.put("nested_blocksize", Integer.toString(nested.blockSize()));
            fields.put("nested_dtype", quoted(nested.dtype()));
            fields.put("nested_offset", JsonText.number(nested.offset()));
        }
        StringBuilder text = new StringBuilder();
        fields.forEach((key, value) -> text.append(text.isEmpty() ? "{" : ", ")
                .append(quoted(key))
                .append(": ")
                .append(value));
        return text.append('}').toString().getBytes(StandardCharsets.UTF_8);
    }

    private static String quoted(String text) {
        StringBuilder quoted = new StringBuilder();
        JsonText.quote(quoted, text, true);
        return quoted.toString();
    }
}
