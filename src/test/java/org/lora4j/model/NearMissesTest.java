package org.lora4j.model;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.List;
import java.util.Map;
import org.bytedeco.javacpp.PointerScope;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.NearMisses;
import org.lora4j.ops.LibTorch;

/** What the names and patterns of a configuration that match nothing lead to. */
class NearMissesTest {
    private static final List<String> PATHS = List.of(
            "model",
            "model.layers.0.self_attn",
            "model.layers.0.self_attn.q_proj",
            "model.layers.0.self_attn.v_proj",
            "model.layers.0.mlp.down_proj",
            "lm_head");

    @ParameterizedTest
    @CsvSource({
        "qproj, q_proj",
        "Q_PROJ, q_proj|v_proj",
        "self_atn.q_proj, self_attn.q_proj|self_attn.v_proj",
        "lmhead, lm_head",
        "down_project, down_proj",
        "query, ''",
        "layers.7.self_attn.q_proj, layers.0.self_attn.q_proj|layers.0.self_attn.v_proj"
    })
    void theNearestNamesOfAsManyPartsAreFound(String name, String expected) {
        assertThat(String.join("|", NearMisses.of(name, PATHS))).isEqualTo(expected);
    }

    @Test
    void targetsThatMatchNothingAreAnErrorThatNamesNearMisses() {
        LibTorch.load();
        try (PointerScope scope = new PointerScope()) {
            LoraConfig config =
                    LoraConfig.builder().targetModules("line0", "attention").build();
            assertThatThrownBy(() -> Lora.wrap(new Toys.Mlp(), config, "a"))
                    .hasMessageContaining("match no module")
                    .hasMessageContaining("near misses: {line0=[lin0]}");
        }
    }

    @Test
    void patternsWithoutEffectAreFound() {
        LoraConfig config = LoraConfig.builder()
                .targetModules("q_proj", "down_proj")
                .rankPattern(Map.of("q_proj", 4))
                .alphaPattern(Map.of("^q_proj", 4, "layers.*.down_proj", 2, "k_proj", 3))
                .build();
        assertThat(config.unmatchedPatterns(PATHS)).containsExactlyInAnyOrder("^q_proj", "k_proj");
        assertThat(config.unmatchedPatterns(List.of("q_proj")))
                .containsExactlyInAnyOrder("layers.*.down_proj", "k_proj");
    }
}
