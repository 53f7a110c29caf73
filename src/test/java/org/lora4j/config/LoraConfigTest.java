package org.lora4j.config;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.UnaryOperator;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.MethodSource;

class LoraConfigTest {
    @Test
    void defaultsArePefts() {
        LoraConfig config = LoraConfig.builder().build();
        assertThat(config.r()).isEqualTo(8);
        assertThat(config.loraAlpha()).isEqualTo(8);
        assertThat(config.targetModules()).isNull();
        assertThat(config.bias()).isEqualTo(BiasMode.NONE);
        assertThat(config.initLoraWeights()).isEqualTo(InitLoraWeights.DEFAULT);
        assertThat(config.otherFields()).hasSize(21).containsEntry("megatron_core", "megatron.core");
        assertThat(config.nonDefaultUnsupported()).isEmpty();
        assertThat(config.unknownFields()).isEmpty();
    }

    @Test
    void scaleIsAlphaByRankOrItsRoot() {
        LoraConfigBuilder builder = LoraConfig.builder().r(4).loraAlpha(6);
        assertThat(builder.build().scale("q")).isEqualTo(1.5);
        assertThat(builder.useRslora(true).build().scale("q")).isEqualTo(3);
    }

    @Test
    void theFirstPatternThatMatchesTheEndOfAPathDecides() {
        Map<String, Integer> ranks = new LinkedHashMap<>();
        ranks.put("q_proj", 3);
        ranks.put("^model.v_proj", 5);
        ranks.put("layers\\.1\\..*", 7);
        ranks.put(".*q_proj", 11);
        LoraConfig config = LoraConfig.builder()
                .r(2)
                .loraAlpha(4)
                .rankPattern(ranks)
                .alphaPattern(Map.of("k_proj", 9))
                .build();
        assertThat(config.rankFor("q_proj")).isEqualTo(3);
        assertThat(config.rankFor("model.layers.1.q_proj")).isEqualTo(3);
        assertThat(config.rankFor("model.layers.1.k_proj")).isEqualTo(7);
        assertThat(config.rankFor("model.my_q_proj")).isEqualTo(11);
        assertThat(config.rankFor("model.v_proj")).isEqualTo(5);
        assertThat(config.rankFor("a.model.v_proj")).isEqualTo(2);
        assertThat(config.rankFor("q_proj.base")).isEqualTo(2);
        // Alpha does not follow the rank.
        assertThat(config.scale("q_proj")).isEqualTo(4.0 / 3);
        assertThat(config.scale("model.layers.1.k_proj")).isEqualTo(9.0 / 7);
    }

    @Test
    void aConfigurationIsEqualToItsCopy() {
        LoraConfig config = LoraConfig.builder()
                .r(3)
                .loraAlpha(2.5)
                .targetModules("v_proj", "q_proj", "v_proj")
                .excludeModules(ModuleSelector.regex("lm.*"))
                .loraDropout(0.25)
                .bias(BiasMode.ALL)
                .modulesToSave("score")
                .layersToTransform(1, 3)
                .layersPattern("layers")
                .rankPattern(Map.of("q_proj", 2))
                .alphaPattern(Map.of("q_proj", 2))
                .useRslora(true)
                .fanInFanOut(true)
                .initLoraWeights("gaussian")
                .taskType(TaskType.SEQ_CLS)
                .baseModelNameOrPath("base")
                .revision("r1")
                .inferenceMode(true)
                .peftVersion("0.20.0")
                .otherField("use_qalora", true)
                .otherField("future", List.of(1, 2.5f))
                .keepUnknown(true)
                .build();
        LoraConfig copy = config.toBuilder().build();
        assertThat(copy).isEqualTo(config).hasSameHashCodeAs(config).hasToString(config.toString());
        assertThat(config.toBuilder().targetModules("q_proj", "v_proj").build()).isEqualTo(config);
        assertThat(config.toString())
                .startsWith("LoraConfig[r=3, loraAlpha=2.5, targetModules=[v_proj, q_proj], ")
                .contains("bias=all", "use_qalora=true", "future=[1, 2.5]")
                .doesNotContain("kasa");
        assertThat(config.nonDefaultUnsupported()).containsOnlyKeys("use_qalora");
        assertThat(config.unknownFields()).isEqualTo(Map.of("future", List.of(1L, 2.5)));
        assertThat(config.toBuilder().r(4).build()).isNotEqualTo(config);
    }

    @Test
    void theOrderOfPatternsMakesADifference() {
        Map<String, Integer> forward = new LinkedHashMap<>();
        forward.put("a", 1);
        forward.put("b", 2);
        Map<String, Integer> backward = new LinkedHashMap<>();
        backward.put("b", 2);
        backward.put("a", 1);
        assertThat(LoraConfig.builder().rankPattern(forward).build())
                .isNotEqualTo(LoraConfig.builder().rankPattern(backward).build());
    }

    @Test
    void nothingReachesInFromOutside() {
        Map<String, Integer> ranks = new LinkedHashMap<>(Map.of("a", 3));
        LoraConfigBuilder builder = LoraConfig.builder().rankPattern(ranks);
        LoraConfig config = builder.build();
        ranks.put("b", 4);
        builder.r(99).otherField("use_dora", true);
        assertThat(config.rankPattern()).containsOnlyKeys("a");
        assertThat(config.r()).isEqualTo(8);
        assertThatThrownBy(() -> config.rankPattern().put("c", 1)).isInstanceOf(UnsupportedOperationException.class);
        assertThatThrownBy(() -> config.otherFields().put("c", 1)).isInstanceOf(UnsupportedOperationException.class);
    }

    @ParameterizedTest
    @CsvSource({
        "gaussian, GAUSSIAN, false",
        "Gaussian, GAUSSIAN, false",
        "orthogonal, ORTHOGONAL, false",
        "Orthogonal, UNKNOWN, false",
        "pissa, PISSA, true",
        "pissa_niter_16, PISSA, true",
        "pissa_x, UNKNOWN, false",
        "OLoRA, OLORA, true",
        "corda, CORDA, true",
        "eva, EVA, false",
        "loftq, LOFTQ, true",
        "lora_ga, LORA_GA, true",
        "mica, MICA, false",
        "nonsense, UNKNOWN, false",
    })
    void initialisationsAreKeptAndClassified(String name, InitLoraWeights.Kind kind, boolean changesBase) {
        InitLoraWeights init = InitLoraWeights.of(name);
        assertThat(init.kind()).isEqualTo(kind);
        assertThat(init.changesBase()).isEqualTo(changesBase);
        assertThat(init.jsonValue()).isEqualTo(name);
        assertThat(InitLoraWeights.of(true).jsonValue()).isEqualTo(true);
        assertThat(InitLoraWeights.of(false).kind()).isEqualTo(InitLoraWeights.Kind.RANDOM);
    }

    private static Arguments wrong(String field, String rule, UnaryOperator<LoraConfigBuilder> change) {
        return Arguments.of(field, rule, change);
    }

    private static Arguments other(String field, Object value, String rule) {
        return wrong(field, rule, b -> b.otherField(field, value));
    }

    static Stream<Arguments> wrongValues() {
        Map<String, Integer> nullRank = Collections.singletonMap("q", null);
        Object deep = 1;
        for (int i = 0; i < 100; i++) {
            deep = List.of(deep);
        }
        return Stream.of(
                wrong("r = 0", "at least 1", b -> b.r(0)),
                wrong("r = -3", "at least 1", b -> b.r(-3)),
                wrong("loraAlpha = NaN", "finite", b -> b.loraAlpha(Double.NaN)),
                wrong("loraAlpha = Infinity", "finite", b -> b.loraAlpha(Double.POSITIVE_INFINITY)),
                wrong("loraDropout = 1.5", "between 0 and 1", b -> b.loraDropout(1.5)),
                wrong("loraDropout = -0.1", "between 0 and 1", b -> b.loraDropout(-0.1)),
                wrong("loraDropout = NaN", "between 0 and 1", b -> b.loraDropout(Double.NaN)),
                wrong("bias = null", "set", b -> b.bias(null)),
                wrong("targetModules", "empty name", b -> b.targetModules("q", " ")),
                wrong("targetModules", "empty name", b -> b.targetModules(Arrays.asList("q", null))),
                wrong("targetModules", "allLinear()", b -> b.targetModules("All-Linear")),
                wrong("targetModules", "empty regular", b -> b.targetModules(ModuleSelector.regex(""))),
                wrong("targetModules = \"a(\"", "Python", b -> b.targetModules(ModuleSelector.regex("a("))),
                wrong("excludeModules", "empty name", b -> b.excludeModules("")),
                wrong("excludeModules = \"*\"", "Python", b -> b.excludeModules(ModuleSelector.regex("*"))),
                wrong("excludeModules", "names or", b -> b.excludeModules(ModuleSelector.allLinear())),
                wrong("modulesToSave", "empty name", b -> b.modulesToSave("a", "")),
                wrong("modulesToSave = \"a[\"", "Python", b -> b.modulesToSave("a[")),
                wrong("layersToTransform = [1, -1]", "at least 0", b -> b.layersToTransform(1, -1)),
                wrong("layersToTransform", "at least 0", b -> b.layersToTransform(Arrays.asList(1, null))),
                wrong(
                        "layersToTransform",
                        "names",
                        b -> b.targetModules(ModuleSelector.regex("a")).layersToTransform(1)),
                wrong(
                        "layersToTransform",
                        "names",
                        b -> b.targetModules(ModuleSelector.allLinear()).layersToTransform(1)),
                wrong("layersPattern", "layersToTransform", b -> b.layersPattern("layers")),
                wrong(
                        "layersPattern = \"h)\"",
                        "Python",
                        b -> b.layersPattern("h)").layersToTransform(1)),
                wrong(
                        "layersPattern",
                        "names",
                        b -> b.targetModules(ModuleSelector.regex("a")).layersPattern("h")),
                wrong("rankPattern = q=0", "at least 1", b -> b.rankPattern(Map.of("q", 0))),
                wrong("rankPattern = q=null", "at least 1", b -> b.rankPattern(nullRank)),
                wrong("rankPattern = \"(\"", "Python", b -> b.rankPattern(Map.of("(", 1))),
                wrong("rankPattern = \"(?i)q\"", "start", b -> b.rankPattern(Map.of("(?i)q", 1))),
                wrong("rankPattern = \"\"", "name a module", b -> b.rankPattern(Map.of("", 1))),
                wrong("alphaPattern = q=NaN", "finite", b -> b.alphaPattern(Map.of("q", Double.NaN))),
                wrong("alphaPattern = \"[\"", "Python", b -> b.alphaPattern(Map.of("[", 1))),
                wrong("initLoraWeights = \" \"", "name", b -> b.initLoraWeights(" ")),
                wrong("initLoraWeights = loftq", "loftq_config", b -> b.initLoraWeights("loftq")),
                wrong("r = 4", "setter", b -> b.otherField("r", 4)),
                other("use_dora", "yes", "true or false"),
                other("target_parameters", "w", "list of names"),
                other("target_parameters", List.of(""), "list of names"),
                other("megatron_core", 3, "string"),
                other("future", 3, "not a field"),
                other("qalora_group_size", 0, "at least 1"),
                other("alora_invocation_tokens", List.of(-1), "token ids"),
                other("trainable_token_indices", Map.of("e", 3), "token ids"),
                other("layer_replication", List.of(List.of(1)), "pairs"),
                other("kasa_config", 3, "object"),
                other("use_bdlora", 3, "object"),
                wrong("eva_config.rho", "at least 1", b -> b.otherField("eva_config", Map.of("rho", 0.5))),
                wrong("velora_config.scale", "above 0", b -> b.otherField("velora_config", Map.of("scale", 0))),
                wrong(
                        "use_bdlora",
                        "both",
                        b -> b.otherField(
                                "use_bdlora",
                                Map.of("target_modules_bd_a", List.of("q"), "target_modules_bd_b", List.of("q")))),
                wrong(
                        "use_dora",
                        "megatron_config",
                        b -> b.otherField("use_dora", true).otherField("megatron_config", Map.of("a", 1))),
                wrong(
                        "lora_bias",
                        "use_dora",
                        b -> b.otherField("use_dora", true).otherField("lora_bias", true)),
                wrong(
                        "lora_bias",
                        "initLoraWeights",
                        b -> b.initLoraWeights("gaussian").otherField("lora_bias", true)),
                wrong(
                        "otherFields",
                        "keep one",
                        b -> b.otherField("use_dora", true).otherField("velora_config", Map.of("scale", 1))),
                wrong(
                        "trainable_token_indices",
                        "modulesToSave",
                        b -> b.modulesToSave("e").otherField("trainable_token_indices", Map.of("e", List.of(1)))),
                other("future", new Object(), "java.lang.Object"),
                other("future", Double.NaN, "finite"),
                other("future", deep, "nested"));
    }

    @ParameterizedTest
    @MethodSource("wrongValues")
    void aWrongValueNamesFieldAndRule(String field, String rule, UnaryOperator<LoraConfigBuilder> change) {
        assertThatThrownBy(() -> change.apply(LoraConfig.builder()).build())
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessageStartingWith("LoraConfig." + field)
                .hasMessageContaining(rule);
    }
}
