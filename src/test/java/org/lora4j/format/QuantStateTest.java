package org.lora4j.format;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.nio.charset.StandardCharsets;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class QuantStateTest {
    private static final String NESTED = "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"bfloat16\","
            + " \"shape\": [5, 7], \"nested_blocksize\": 256, \"nested_dtype\": \"float32\","
            + " \"nested_offset\": 2.3022053241729736}";
    private static final String PLAIN =
            "{\"quant_type\": \"fp4\", \"blocksize\": 32, \"dtype\": \"float16\", \"shape\": [4096, 11008]}";

    private static QuantState parse(String json) throws FormatException {
        return QuantState.parse(json.getBytes(StandardCharsets.UTF_8), "w.quant_state");
    }

    @Test
    void readsAndWritesWhatBitsandbytesWrites() throws FormatException {
        QuantState nested = parse(NESTED);
        assertThat(nested)
                .isEqualTo(new QuantState(
                        "nf4",
                        64,
                        "bfloat16",
                        List.of(5L, 7L),
                        new QuantState.Nested(256, "float32", 2.3022053241729736)));
        assertThat(new String(nested.json(), StandardCharsets.UTF_8)).isEqualTo(NESTED);
        assertThat(parse(PLAIN)).isEqualTo(new QuantState("fp4", 32, "float16", List.of(4096L, 11008L), null));
        assertThat(new String(parse(PLAIN).json(), StandardCharsets.UTF_8)).isEqualTo(PLAIN);
    }

    @Test
    void smallOffsetsAreWrittenAsPythonWritesThem() throws FormatException {
        QuantState state = parse(NESTED.replace("2.3022053241729736", "3.2e-05"));
        assertThat(new String(state.json(), StandardCharsets.UTF_8)).endsWith("\"nested_offset\": 3.2e-05}");
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            value = {
                "\"blocksize\": 64, | '' | has the keys",
                "\"blocksize\": 64 | \"blocksize\": 0 | \"blocksize\" is 0, not a size",
                "\"blocksize\": 64 | \"blocksize\": \"64\" | \"blocksize\" is 64, not a size",
                "\"blocksize\": 64 | \"blocksize\": 99999999999 | not a size",
                "[5, 7] | [5, -7] | not a list of sizes",
                "[5, 7] | 35 | not a list of sizes",
                "\"nf4\" | 4 | \"quant_type\" is 4, not a string",
                "2.3022053241729736 | null | \"nested_offset\" is null, not a number",
                "\"nested_dtype\" | \"nested_type\" | has the keys",
                "{ | [ | must be one JSON object",
            })
    void whatIsNoStateIsNamed(String part, String other, String message) {
        assertThat(NESTED).contains(part);
        assertThatThrownBy(() -> parse(NESTED.replace(part, other)))
                .isInstanceOf(FormatException.class)
                .hasMessageContaining("w.quant_state")
                .hasMessageContaining(message);
    }
}
