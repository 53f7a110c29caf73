package org.lora4j.format;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;

class JsonTextTest {
    @Test
    void printsFloatsAsPythonDoes() throws IOException {
        Map<String, ?> golden = StrictJson.readObject(Golden.path("config/python_floats.json"), 1 << 20);
        List<?> floats = (List<?>) golden.get("floats");
        assertThat(floats).hasSizeGreaterThan(500);
        for (Object item : floats) {
            Map<?, ?> value = (Map<?, ?>) item;
            double number = Double.parseDouble((String) value.get("hex"));
            assertThat(JsonText.number(number)).as("%s", value.get("hex")).isEqualTo(value.get("text"));
        }
    }

    @Test
    void sortsKeysAndIndentsAsPythonDoes() {
        Map<String, Object> map = new LinkedHashMap<>();
        map.put("b", Arrays.asList(1L, 2.0, null, true, "\u00e9\n"));
        map.put("a", Map.of("z", List.of(), "y", Map.of()));
        map.put("\ud83d\ude00", 1L);
        map.put("\ue000", new JsonText.Ordered(new LinkedHashMap<>(Map.of("k", 1L))));
        assertThat(JsonText.of(map)).isEqualTo("""
                {
                  "a": {
                    "y": {},
                    "z": []
                  },
                  "b": [
                    1,
                    2.0,
                    null,
                    true,
                    "\\u00e9\\n"
                  ],
                  "\\ue000": {
                    "k": 1
                  },
                  "\\ud83d\\ude00": 1
                }""");
    }
}
