package org.lora4j.format;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.lora4j.config.LoraConfig;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;
import tools.jackson.databind.node.ObjectNode;

/** Every field of a configuration beside what PEFT writes for it, refuses, warns of and drops: configs.json. */
class PeftConfigsTest {
    private static final JsonMapper JSON = new JsonMapper();

    private static Stream<JsonNode> rows(String list) throws IOException {
        return JSON.readTree(Files.readString(Golden.path("configs.json")))
                .get(list)
                .valueStream();
    }

    static Stream<JsonNode> fields() throws IOException {
        return rows("fields");
    }

    static Stream<JsonNode> refused() throws IOException {
        return rows("refused");
    }

    static Stream<JsonNode> warned() throws IOException {
        return rows("warned");
    }

    static Stream<JsonNode> unknown() throws IOException {
        return rows("unknown");
    }

    private static ObjectNode defaults() throws IOException {
        return (ObjectNode) JSON.readTree(Files.readString(Golden.path("config/peft/defaults.json")));
    }

    private static ObjectNode with(ObjectNode base, JsonNode entries) {
        entries.propertyStream().forEach(each -> base.set(each.getKey(), each.getValue()));
        return base;
    }

    private static LoraConfig parse(JsonNode json) throws FormatException {
        return AdapterConfigJson.parse(json.toString(), "row");
    }

    /** As the file was given, but refusing what PEFT does not know. */
    private static LoraConfig strict(JsonNode json) throws FormatException {
        return parse(json).toBuilder().keepUnknown(false).build();
    }

    /** A value with lists and numbers in one form each: a layer's index or pattern may stand without a list. */
    private static @Nullable Object plain(@Nullable JsonNode json, String key) {
        if (json == null || json.isNull()) {
            return null;
        }
        if (key.startsWith("layers_") && !json.isArray()) {
            return List.of(plain(json, ""));
        }
        if (json.isObject()) {
            Map<String, @Nullable Object> object = new TreeMap<>();
            json.propertyStream().forEach(each -> object.put(each.getKey(), plain(each.getValue(), each.getKey())));
            return object;
        }
        if (json.isArray()) {
            List<@Nullable Object> list = new ArrayList<>();
            json.forEach(item -> list.add(plain(item, "")));
            return list;
        }
        return json.isNumber() ? (Object) json.doubleValue() : json.toString();
    }

    private static void isWrittenAs(LoraConfig config, JsonNode expected) throws FormatException {
        String text = AdapterConfigJson.text(config);
        assertThat(plain(JSON.readTree(text), "")).isEqualTo(plain(expected, ""));
        LoraConfig again = AdapterConfigJson.parse(text, "written");
        assertThat(again).isEqualTo(config);
        assertThat(AdapterConfigJson.text(again)).isEqualTo(text);
    }

    @ParameterizedTest
    @MethodSource("fields")
    void aFieldSurvivesReadingWritingAndReading(JsonNode row) throws IOException {
        ObjectNode saved = with(defaults(), row.get("file"));
        assertThat(saved.propertyNames()).hasSize(41);
        isWrittenAs(parse(saved), saved);
        assertThat(strict(saved)).isEqualTo(parse(saved));
    }

    @ParameterizedTest
    @MethodSource("fields")
    void whatIsLeftOutIsFilledInAsByPeft(JsonNode row) throws IOException {
        ObjectNode given = with(JSON.createObjectNode().put("peft_type", "LORA"), row.get("arguments"));
        isWrittenAs(parse(given), with(defaults(), row.get("file")));
    }

    @Test
    void everyKeyOfTheFileIsChangedBySomeRow() throws IOException {
        Set<String> changed = new TreeSet<>(Set.of("peft_type"));
        fields().forEach(row -> changed.addAll(row.get("file").propertyNames()));
        assertThat(changed)
                .hasSize(41)
                .containsExactlyInAnyOrderElementsOf(defaults().propertyNames());
    }

    @ParameterizedTest
    @MethodSource("refused")
    void whatPeftRefusesNamesFieldValueAndRule(JsonNode row) {
        assertThat(row.get("message").asString()).isNotEmpty();
        ObjectNode given = with(JSON.createObjectNode().put("peft_type", "LORA"), row.get("config"));
        assertThatThrownBy(() -> strict(given))
                .as(row.toString())
                .isInstanceOfAny(FormatException.class, IllegalArgumentException.class)
                .hasMessageContaining(row.get("field").asString() + " = ")
                .hasMessageContaining(row.get("rule").asString());
    }

    @ParameterizedTest
    @MethodSource("warned")
    void whatPeftWarnsOfIsWarnedOf(JsonNode row) throws IOException {
        ObjectNode given = with(JSON.createObjectNode().put("peft_type", "LORA"), row.get("config"));
        List<String> warnings = parse(given).warnings();
        assertThat(warnings).as(row.toString()).hasSize(row.get("peft").size());
        if (!warnings.isEmpty()) {
            assertThat(warnings)
                    .anySatisfy(warning ->
                            assertThat(warning).contains(row.get("warning").asString()));
        }
    }

    @ParameterizedTest
    @MethodSource("unknown")
    void whatPeftDoesNotKnowIsKeptAndNamed(JsonNode row) throws IOException {
        ObjectNode given = with(defaults(), row.get("config"));
        LoraConfig config = parse(given);
        JsonNode written = JSON.readTree(AdapterConfigJson.text(config));
        row.get("config").propertyStream().forEach(each -> {
            JsonNode after = written.get(each.getKey());
            if (each.getValue().isObject() && !each.getKey().startsWith("use_future")) {
                each.getValue()
                        .propertyStream()
                        .forEach(inner -> assertThat(after.get(inner.getKey())).isEqualTo(inner.getValue()));
            } else {
                assertThat(after).isEqualTo(each.getValue());
            }
        });
        String name = row.get("warning").asString();
        assertThat(config.warnings()).singleElement().asString().contains(name);
        assertThat(AdapterConfigJson.parse(written.toString(), "written")).isEqualTo(config);
        assertThatThrownBy(() -> strict(given))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessageContaining(name)
                .hasMessageStartingWith("LoraConfig.");
    }
}
