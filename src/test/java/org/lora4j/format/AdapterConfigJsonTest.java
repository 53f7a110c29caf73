package org.lora4j.format;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.MethodSource;
import org.lora4j.config.BiasMode;
import org.lora4j.config.InitLoraWeights;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.ModuleSelector;
import org.lora4j.config.TaskType;

class AdapterConfigJsonTest {
    private static LoraConfig parse(String json) throws FormatException {
        return AdapterConfigJson.parse(json, "test.json");
    }

    private static LoraConfig with(String entries) throws FormatException {
        return parse("{\"peft_type\": \"LORA\", " + entries + "}");
    }

    static Stream<Path> savedByPeft() throws IOException {
        return Files.list(Golden.path("config/peft")).sorted();
    }

    @ParameterizedTest
    @MethodSource("savedByPeft")
    void aFileSavedByPeftIsWrittenBackByteForByte(Path saved, @TempDir Path folder) throws IOException {
        LoraConfig config = AdapterConfigJson.read(saved);
        Path file = folder.resolve(AdapterConfigJson.FILE_NAME);
        AdapterConfigJson.write(file, config);
        assertThat(Files.readString(file)).isEqualTo(Files.readString(saved));
        assertThat(AdapterConfigJson.read(file)).isEqualTo(config);
        assertThat(StrictJson.readObject(file, 1 << 20)).hasSize(41);
    }

    @Test
    void readsTheFieldsOfAFileSavedByPeft() throws IOException {
        LoraConfig usual = AdapterConfigJson.read(Golden.path("config/peft/usual.json"));
        assertThat(usual)
                .isEqualTo(LoraConfig.builder()
                        .r(16)
                        .loraAlpha(32)
                        .targetModules("q_proj")
                        .loraDropout(0.05)
                        .bias(BiasMode.LORA_ONLY)
                        .taskType(TaskType.CAUSAL_LM)
                        .build());
        LoraConfig patterns = AdapterConfigJson.read(Golden.path("config/peft/patterns.json"));
        assertThat(patterns.targetModules()).isEqualTo(ModuleSelector.allLinear());
        assertThat(patterns.excludeModules()).isEqualTo(ModuleSelector.regex(".*\\.(gate|up)_proj"));
        assertThat(patterns.rankFor("model.k_proj")).isEqualTo(2);
        assertThat(patterns.alphaFor("model.q_proj")).isEqualTo(0.1);
        assertThat(patterns.scale("model.k_proj")).isEqualTo(2.5 / Math.sqrt(2));
        LoraConfig layers = AdapterConfigJson.read(Golden.path("config/peft/layers.json"));
        assertThat(layers.layersToTransform()).containsExactly(0, 2);
        assertThat(layers.layersPattern()).containsExactly("layers", "h");
        assertThat(layers.modulesToSave()).containsExactly("score");
        assertThat(layers.initLoraWeights().kind()).isEqualTo(InitLoraWeights.Kind.GAUSSIAN);
    }

    @ParameterizedTest
    @CsvSource({
        "defaults, ''",
        "eva, ''",
        "corda, ''",
        "lora_ga, ''",
        "lora_bias, ''",
        "replication, ''",
        "alora, ''",
        "kasa, kasa_config",
        "velora, velora_config",
        "arrow, arrow_config",
        "monteclora, monteclora_config",
        "bdlora, use_bdlora",
        "megatron, megatron_config",
        "qalora, use_qalora",
    })
    void namesWhatThisVersionDoesNotDo(String name, String keys) throws IOException {
        LoraConfig config = AdapterConfigJson.read(Golden.path("config/peft/" + name + ".json"));
        assertThat(String.join(" ", config.nonDefaultUnsupported().keySet())).isEqualTo(keys);
    }

    @Test
    void missingKeysTakePeftsDefaults() throws IOException {
        LoraConfig config = parse("{\"peft_type\": \"LORA\"}");
        assertThat(config).isEqualTo(LoraConfig.builder().build());
        assertThat(AdapterConfigJson.text(config))
                .isEqualTo(Files.readString(Golden.path("config/peft/defaults.json")));
    }

    @Test
    void unknownKeysAreKept() throws FormatException {
        LoraConfig config = with("\"use_future\": {\"b\": [1, 2.5, \"x\", null, true], \"a\": 18446744073709551616}");
        assertThat(config.unknownFields()).containsOnlyKeys("use_future");
        LoraConfig again = parse(AdapterConfigJson.text(config));
        assertThat(again).isEqualTo(config);
        assertThat(again.unknownFields()).isEqualTo(config.unknownFields());
        assertThat(AdapterConfigJson.text(config)).contains("\"a\": 18446744073709551616", "2.5");
    }

    @Test
    void patternsKeepTheOrderInWhichTheyAreTried() throws FormatException {
        Map<String, Integer> ranks = new LinkedHashMap<>();
        ranks.put("z_proj", 3);
        ranks.put(".*", 5);
        LoraConfig config = LoraConfig.builder().rankPattern(ranks).build();
        assertThat(config.rankFor("a.z_proj")).isEqualTo(3);
        assertThat(parse(AdapterConfigJson.text(config)).rankFor("a.z_proj")).isEqualTo(3);
    }

    @Test
    void singleValuesAreListsOfOne() throws FormatException {
        LoraConfig config = with("\"layers_to_transform\": 3, \"layers_pattern\": \"h\", \"target_modules\": [\"c\"]");
        assertThat(config.layersToTransform()).isEqualTo(List.of(3));
        assertThat(config.layersPattern()).isEqualTo(List.of("h"));
    }

    @Test
    void nullIsFalseAsInPython() throws FormatException {
        LoraConfig config = with("\"fan_in_fan_out\": null, \"init_lora_weights\": null, \"use_dora\": null, "
                + "\"rank_pattern\": null, \"alpha_pattern\": null, \"loftq_config\": null, \"layers_pattern\": \"\"");
        assertThat(config.fanInFanOut()).isFalse();
        assertThat(config.initLoraWeights()).isEqualTo(InitLoraWeights.RANDOM);
        assertThat(config.nonDefaultUnsupported()).isEmpty();
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            quoteCharacter = '`',
            value = {
                "{}                                              | peft_type = null",
                "{\"peft_type\": \"ADALORA\"}                    | peft_type = \"ADALORA\"",
                "{\"peft_type\": \"LORA\", \"r\": 0}             | r = 0",
                "{\"peft_type\": \"LORA\", \"r\": 8.0}           | r = 8.0",
                "{\"peft_type\": \"LORA\", \"r\": 4294967297}    | r = 4294967297",
                "{\"peft_type\": \"LORA\", \"r\": null}          | r = null",
                "{\"peft_type\": \"LORA\", \"lora_alpha\": \"1\"} | lora_alpha = \"1\"",
                "{\"peft_type\": \"LORA\", \"lora_alpha\": 1e999} | 1e999",
                "{\"peft_type\": \"LORA\", \"lora_alpha\": NaN}  | JSON",
                "{\"peft_type\": \"LORA\", \"lora_dropout\": 1.5} | loraDropout = 1.5",
                "{\"peft_type\": \"LORA\", \"bias\": \"some\"}   | bias = \"some\"",
                "{\"peft_type\": \"LORA\", \"bias\": null}       | bias = null",
                "{\"peft_type\": \"LORA\", \"task_type\": \"X\"} | task_type = \"X\"",
                "{\"peft_type\": \"LORA\", \"target_modules\": 5} | target_modules = 5",
                "{\"peft_type\": \"LORA\", \"target_modules\": [\"\"]} | targetModules = []",
                "{\"peft_type\": \"LORA\", \"target_modules\": [null]} | target_modules = [null]",
                "{\"peft_type\": \"LORA\", \"target_modules\": \"(\"} | targetModules = \"(\"",
                "{\"peft_type\": \"LORA\", \"target_modules\": [\"all-linear\"]} | all-linear",
                "{\"peft_type\": \"LORA\", \"rank_pattern\": {\"q\": 0}} | rankPattern = q=0",
                "{\"peft_type\": \"LORA\", \"rank_pattern\": {\"q\": 1.5}} | rank_pattern.q = 1.5",
                "{\"peft_type\": \"LORA\", \"alpha_pattern\": {\"q\": []}} | alpha_pattern.q = []",
                "{\"peft_type\": \"LORA\", \"alpha_pattern\": []} | alpha_pattern = []",
                "{\"peft_type\": \"LORA\", \"use_rslora\": 1}    | use_rslora = 1",
                "{\"peft_type\": \"LORA\", \"init_lora_weights\": 1} | init_lora_weights = 1",
                "{\"peft_type\": \"LORA\", \"layers_to_transform\": [-1]} | layersToTransform = [-1]",
                "{\"peft_type\": \"LORA\", \"revision\": 3}      | revision = 3",
                "{\"peft_type\": \"LORA\", \"use_dora\": \"yes\"} | use_dora = \"yes\"",
                "{\"peft_type\": \"LORA\", \"r\": 4, \"r\": 8}   | Duplicate",
                "{\"peft_type\": \"LORA\"} {}                    | follows",
                "[1]                                             | one JSON object",
                "{\"peft_type\": \"LORA\"                        | JSON",
                "{\"peft_type\": \"LORA\", \"x\": \"\\ud800\"}   | surrogate",
            })
    void aWrongFileNamesFileAndKey(String json, String message) {
        assertThatThrownBy(() -> parse(json))
                .isInstanceOf(FormatException.class)
                .hasMessageStartingWith("test.json: ")
                .hasMessageContaining(message);
    }

    @Test
    void deepJsonIsRefused() {
        String deep = "\"x\": " + "[".repeat(100_000) + "]".repeat(100_000);
        assertThatThrownBy(() -> with(deep)).isInstanceOf(FormatException.class).hasMessageContaining("epth");
    }

    @Test
    void notUtf8IsRefused() {
        byte[] json = {'{', '"', (byte) 0xc0, (byte) 0x80, '"', ':', '1', '}'};
        assertThatThrownBy(() -> StrictJson.parseObject(json, "test.json"))
                .isInstanceOf(FormatException.class)
                .hasMessageContaining("byte 2");
    }

    @Test
    void aHugeFileIsRefusedUnread(@TempDir Path folder) throws IOException {
        Path file = folder.resolve("huge.json");
        Files.writeString(file, "{}" + " ".repeat(1000));
        assertThatThrownBy(() -> StrictJson.readObject(file, 1000))
                .isInstanceOf(FormatException.class)
                .hasMessageContaining("1002 bytes");
    }
}
