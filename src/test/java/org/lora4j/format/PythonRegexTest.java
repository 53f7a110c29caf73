package org.lora4j.format;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.util.List;
import java.util.Map;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.config.PythonRegex;

/** Compares {@link PythonRegex} with results of Python's {@code re}; it stands here for the sake of {@link StrictJson}. */
class PythonRegexTest {
    private static Map<String, ?> golden() throws IOException {
        return StrictJson.readObject(Golden.path("config/python_regex.json"), 1 << 20);
    }

    static Stream<Map<?, ?>> cases() throws IOException {
        return ((List<?>) golden().get("cases")).stream().map(item -> (Map<?, ?>) item);
    }

    @ParameterizedTest
    @MethodSource("cases")
    void agreesWithPython(Map<?, ?> item) throws IOException {
        String regex = (String) item.get("regex");
        if (item.containsKey("error")) {
            assertThatThrownBy(() -> PythonRegex.compile(regex))
                    .as("Python: %s", item.get("error"))
                    .isInstanceOf(IllegalArgumentException.class);
            return;
        }
        Pattern pattern = PythonRegex.compile(regex);
        List<String> subjects = ((List<?>) golden().get("subjects"))
                .stream().map(String.class::cast).toList();
        assertThat(subjects.stream().filter(s -> pattern.matcher(s).matches()).toList())
                .as("fullmatch")
                .isEqualTo(item.get("fullmatch"));
        assertThat(subjects.stream().filter(s -> pattern.matcher(s).lookingAt()).toList())
                .as("match")
                .isEqualTo(item.get("match"));
    }

    @ParameterizedTest
    @ValueSource(strings = {"(?x)a b", "(?L)a", "(a)?(?(1)b|c)"})
    void whatIsNotTranslatedIsRefused(String regex) {
        assertThatThrownBy(() -> PythonRegex.compile(regex)).isInstanceOf(IllegalArgumentException.class);
    }

    @Test
    void hostileExpressionsDoNotOverflowTheStack() {
        assertThatThrownBy(() -> PythonRegex.compile("(".repeat(10_000) + ")".repeat(10_000)))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessageContaining("deeper");
        assertThatThrownBy(() -> PythonRegex.compile("a".repeat(PythonRegex.MAX_LENGTH + 1)))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessageContaining("characters");
    }
}
