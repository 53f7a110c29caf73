package org.lora4j.model;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.ModuleSelector;
import org.lora4j.config.PeftCompat;
import org.lora4j.config.TaskType;
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

    static Stream<JsonNode> nested() throws IOException {
        return rows("nested_patterns");
    }

    static Stream<JsonNode> targeted() throws IOException {
        return rows("targeted");
    }

    static Stream<JsonNode> allLinear() throws IOException {
        return rows("all_linear");
    }

    static Stream<JsonNode> minimal() throws IOException {
        return rows("minimal");
    }

    static Stream<JsonNode> parameters() throws IOException {
        return rows("parameters");
    }

    /** The names in the model a row is about. */
    private static JsonNode model(JsonNode row) throws IOException {
        return rows("small_models")
                .filter(model -> model.get("name").equals(row.get("model")))
                .findFirst()
                .orElseThrow();
    }

    private static List<String> strings(JsonNode list) {
        return list.valueStream().map(JsonNode::asString).toList();
    }

    private static List<String> allLinear(JsonNode model, @Nullable TaskType task) {
        JsonNode output = model.get("output");
        return TargetMatcher.allLinear(
                strings(model.get("linear")),
                strings(model.get("modules")),
                output.isNull() ? null : output.asString(),
                task);
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
    @MethodSource("nested")
    void patternsMeanTheirLevelsOfANestedModel(JsonNode row) throws IOException {
        LoraConfig config = config(row.get("config"));
        assertThat(row.get("layers").propertyNames()).hasSize(6);
        row.get("layers").propertyStream().forEach(layer -> {
            assertThat(config.rankFor(layer.getKey()))
                    .as(layer.getKey())
                    .isEqualTo(layer.getValue().get("r").asInt());
            assertThat(config.scale(layer.getKey()))
                    .as(layer.getKey())
                    .isEqualTo(layer.getValue().get("scaling").asDouble());
        });
    }

    @ParameterizedTest
    @MethodSource("targeted")
    void theSameModulesOfASmallModelAreTargetsAndTheirNamesAreShortened(JsonNode row) throws IOException {
        JsonNode model = model(row);
        List<String> modules = strings(model.get("modules"));
        LoraConfig given = config(row.get("config"));
        LoraConfig named = given.targetModules() instanceof ModuleSelector.AllLinear
                ? given.toBuilder().targetModules(allLinear(model, null)).build()
                : given;
        LoraConfig config = MinimalTargets.condense(named, modules);
        TargetMatcher matcher = new TargetMatcher(config);
        assertThat(modules.stream()
                        .filter(path -> matcher.verdict(path) == TargetMatcher.Verdict.TARGET)
                        .toList())
                .isEqualTo(strings(row.get("targeted")));
        JsonNode saved = row.get("saved_targets");
        if (saved.isString()) {
            assertThat(config.targetModules()).isEqualTo(ModuleSelector.regex(saved.asString()));
        } else {
            assertThat(((ModuleSelector.Names) config.targetModules()).names())
                    .containsExactlyInAnyOrderElementsOf(strings(saved));
        }
    }

    @ParameterizedTest
    @MethodSource("allLinear")
    void allLinearLeavesOutTheOutputLayer(JsonNode row) throws IOException {
        JsonNode task = row.get("task_type");
        assertThat(allLinear(model(row), task.isNull() ? null : TaskType.valueOf(task.asString())))
                .containsExactlyInAnyOrderElementsOf(strings(row.get("targets")));
    }

    @ParameterizedTest
    @MethodSource("minimal")
    void aListOfTargetsIsShortenedAsByPeft(JsonNode row) {
        List<String> targets = strings(row.get("targets"));
        List<String> others = strings(row.get("others"));
        if (row.has("error")) {
            assertThatThrownBy(() -> MinimalTargets.of(targets, others))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessageMatching("(targets|').*");
        } else {
            assertThat(MinimalTargets.of(targets, others))
                    .containsExactlyInAnyOrderElementsOf(strings(row.get("minimal")));
        }
    }

    @ParameterizedTest
    @MethodSource("parameters")
    void theSameParametersAreTargetsAndNestAlike(JsonNode row) throws IOException {
        LoraConfig config = config(row.get("config"));
        ParameterMatcher matcher = new ParameterMatcher(config);
        List<String> paths = strings(model(row).get("parameters"));
        Set<String> modules = strings(model(row).get("modules")).stream()
                .filter(path -> new TargetMatcher(config).verdict(path) == TargetMatcher.Verdict.TARGET)
                .collect(Collectors.toSet());
        if (row.has("error")) {
            String error = row.get("error").asString();
            if (error.startsWith("No `target_modules`")) {
                assertThat(matcher.targets(paths, modules)).isEmpty();
            } else {
                assertThatThrownBy(() -> matcher.targets(paths, modules))
                        .hasMessageContaining(error.startsWith("Targeting") ? "model itself" : "targetModules");
            }
            return;
        }
        Map<String, String> wrapped = new TreeMap<>();
        List<String> targeted = new ArrayList<>();
        matcher.targets(paths, modules)
                .forEach((module, names) -> names.forEach(name -> {
                    String path = module + "." + name;
                    targeted.add(path);
                    String at = ParameterMatcher.wrapperPath(module, names, name);
                    wrapped.put(at, name + " " + config.rankFor(path) + " " + config.scale(path));
                }));
        assertThat(targeted).isEqualTo(strings(row.get("targeted")));
        Map<String, String> expected = new TreeMap<>();
        row.get("wrapped")
                .propertyStream()
                .forEach(each -> expected.put(
                        each.getKey(),
                        each.getValue().get("parameter").asString() + " "
                                + each.getValue().get("r").asInt() + " "
                                + each.getValue().get("scaling").asDouble()));
        assertThat(wrapped).isEqualTo(expected);
    }

    @Test
    void adaptersOfOneModelAdaptTheSameParameters() {
        LoraConfig first = LoraConfig.builder().targetParameters("a.w", "b.w").build();
        LoraConfig same = LoraConfig.builder().targetParameters("b.w", "a.w").build();
        LoraConfig other = LoraConfig.builder().targetParameters("a.w").build();
        LoraConfig none = LoraConfig.builder().targetModules("q").build();
        ParameterMatcher.checkBeside("x", same, Map.of("y", first, "z", none));
        ParameterMatcher.checkBeside("x", none, Map.of("y", first));
        assertThatThrownBy(() -> ParameterMatcher.checkBeside("x", other, Map.of("y", first)))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessageContaining("\"x\"")
                .hasMessageContaining("\"y\"");
    }

    @ParameterizedTest
    @MethodSource("injection")
    void theSameLayersAreAdaptedWithTheSameScale(JsonNode row) throws IOException {
        try (PointerScope scope = new PointerScope()) {
            Module base = base(row);
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
