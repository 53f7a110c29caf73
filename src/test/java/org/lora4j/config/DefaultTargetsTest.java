package org.lora4j.config;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashSet;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import org.junit.jupiter.api.Test;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

class DefaultTargetsTest {
    @Test
    void theTableIsPefts() throws IOException {
        Map<String, Object> expected = new TreeMap<>();
        Map<String, Object> actual = new TreeMap<>();
        JsonNode rows = new JsonMapper()
                .readTree(Files.readString(Path.of("src/test/resources/golden/matching.json")))
                .get("default_targets");
        for (JsonNode row : rows) {
            JsonNode targets = row.get("target_modules");
            Set<String> names = new HashSet<>();
            targets.forEach(name -> names.add(name.asString()));
            expected.put(row.get("model_type").asString(), targets.isString() ? targets.asString() : names);
        }
        for (String type : DefaultTargets.modelTypes()) {
            ModuleSelector targets = DefaultTargets.of(type).orElseThrow();
            actual.put(
                    type,
                    targets instanceof ModuleSelector.Names names
                            ? names.names()
                            : ((ModuleSelector.Regex) targets).regex());
        }
        assertThat(actual).hasSizeGreaterThan(30).isEqualTo(expected);
    }

    @Test
    void targetsThatAreSetStay() {
        LoraConfig config = LoraConfig.builder().targetModules("x").build();
        assertThat(DefaultTargets.resolve(config, "llama")).isSameAs(config);
        LoraConfig none = LoraConfig.builder().targetModules().build();
        assertThat(DefaultTargets.resolve(none, "unheard_of")).isSameAs(none);
    }

    @Test
    void aTypeGivesItsTargetsAndNothingElseChanges() {
        LoraConfig config = LoraConfig.builder().r(3).build();
        assertThat(DefaultTargets.resolve(config, "gpt2"))
                .isEqualTo(LoraConfig.builder().r(3).targetModules("c_attn").build());
        assertThat(DefaultTargets.of("unheard_of")).isEmpty();
    }

    @Test
    void parametersAloneAreEnough() {
        LoraConfig config = LoraConfig.builder().targetParameters("experts.w").build();
        assertThat(DefaultTargets.resolve(config, "llama").targetModules())
                .isEqualTo(ModuleSelector.names("q_proj", "v_proj"));
        assertThat(DefaultTargets.resolve(config, "unheard_of")).isSameAs(config);
    }

    @Test
    void anUnknownTypeIsNamed() {
        LoraConfig config = LoraConfig.builder().build();
        assertThatThrownBy(() -> DefaultTargets.resolve(config, "unheard_of"))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessageStartingWith(
                        "LoraConfig.targetModules = null: has no default for models of type \"unheard_of\"")
                .hasMessageContaining("mistral");
        assertThatThrownBy(() -> DefaultTargets.resolve(config, null)).hasMessageContaining("without a model type");
    }
}
