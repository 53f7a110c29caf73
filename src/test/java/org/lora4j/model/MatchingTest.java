package org.lora4j.model;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.stream.Stream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.PeftCompat;
import org.lora4j.format.AdapterConfigJson;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;
import tools.jackson.databind.node.ObjectNode;

/** Which modules a configuration means, and with which rank and scale: the answers of PEFT's own functions. */
class MatchingTest {
    private static final JsonMapper JSON = new JsonMapper();

    private static Stream<JsonNode> rows(String list) throws IOException {
        return JSON.readTree(Files.readString(GoldenCase.GOLDEN.resolve("matching.json")))
                .get(list)
                .valueStream();
    }

    static Stream<JsonNode> targets() throws IOException {
        return rows("targets");
    }

    static Stream<JsonNode> patterns() throws IOException {
        return rows("patterns");
    }

    static Stream<JsonNode> injection() throws IOException {
        return rows("injection");
    }

    static Stream<JsonNode> refused() throws IOException {
        return rows("refused");
    }

    private static LoraConfig config(JsonNode fields) throws IOException {
        ObjectNode json = JSON.createObjectNode().put("peft_type", "LORA");
        fields.propertyStream().forEach(each -> json.set(each.getKey(), each.getValue()));
        return AdapterConfigJson.parse(json.toString(), "a row of matching.json");
    }

    @ParameterizedTest
    @MethodSource("targets")
    void aModuleIsATargetAsInPeft(JsonNode row) throws IOException {
        ObjectNode fields = JSON.createObjectNode();
        row.propertyStream()
                .filter(each -> !each.getKey().equals("key") && !each.getKey().equals("result"))
                .forEach(each -> fields.set(each.getKey(), each.getValue()));
        TargetMatcher.Verdict expected = switch (row.get("result").asString()) {
            case "matched" -> TargetMatcher.Verdict.TARGET;
            case "excluded" -> TargetMatcher.Verdict.EXCLUDED;
            default -> TargetMatcher.Verdict.OTHER;
        };
        assertThat(new TargetMatcher(config(fields)).verdict(row.get("key").asString()))
                .as(row.toString())
                .isEqualTo(expected);
    }

    @ParameterizedTest
    @MethodSource("patterns")
    void theFirstPatternThatFitsGivesTheRank(JsonNode row) throws IOException {
        Map<String, Integer> patterns = new LinkedHashMap<>();
        row.get("patterns")
                .forEach(p -> patterns.put(p.get(0).asString(), p.get(1).asInt()));
        LoraConfig config = LoraConfig.builder()
                .r(97)
                .targetModules("x")
                .rankPattern(patterns)
                .build();
        int expected = row.get("value").isNull() ? 97 : row.get("value").asInt();
        assertThat(config.rankFor(row.get("key").asString())).as(row.toString()).isEqualTo(expected);
    }

    @ParameterizedTest
    @MethodSource("injection")
    void theSameLayersAreAdaptedWithTheSameScale(JsonNode row) throws IOException {
        try (PointerScope scope = new PointerScope()) {
            Module base = base(row);
            if (row.get("config").get("target_modules").isNull()) {
                // PEFT knows default targets by the model's type; here the targets are always named.
                assertThatThrownBy(() -> Lora.wrap(base, config(row.get("config")), "default"))
                        .hasMessageContaining("targetModules is not set");
                return;
            }
            LoraModel<Module> model =
                    Lora.wrap(base, config(row.get("config")), "default", Set.of(PeftCompat.MODULES_TO_SAVE_BY_SUFFIX));
            Map<String, String> expected = new TreeMap<>();
            row.get("layers")
                    .propertyStream()
                    .forEach(each -> expected.put(
                            each.getKey(),
                            each.getValue().get("r").asInt() + " "
                                    + each.getValue().get("scaling").asDouble()));
            Map<String, String> actual = new TreeMap<>();
            model.adapter("default").weights().forEach((path, w) -> actual.put(path, w.rank() + " " + w.scale()));
            assertThat(actual).as(row.toString()).isEqualTo(expected);
            assertThat(model.modelStatus().trainableParameters())
                    .as(row.toString())
                    .isEqualTo(row.get("trainable").asLong());
        }
    }

    @ParameterizedTest
    @MethodSource("refused")
    void whatPeftRefusesIsRefused(JsonNode row) throws IOException {
        try (PointerScope scope = new PointerScope()) {
            Module base = base(row);
            assertThatThrownBy(() -> Lora.wrap(base, config(row.get("config")), "default"))
                    .as(row.toString())
                    .isInstanceOfAny(IllegalArgumentException.class, IOException.class)
                    .hasMessageMatching("(?s).{20,}");
        }
    }

    private static Module base(JsonNode row) throws IOException {
        String path = row.get("base").asString();
        String name = path.substring(path.lastIndexOf('/') + 1).replace(".safetensors", "");
        return GoldenCase.base(path, name, ScalarType.Float);
    }
}
