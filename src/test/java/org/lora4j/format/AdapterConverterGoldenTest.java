package org.lora4j.format;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.config.LoraConfig;

/** Converts files that diffusers wrote or took; layouts.py makes them from adapters of PEFT. */
class AdapterConverterGoldenTest {
    private static final Path LAYOUTS = Golden.path("format/layouts");

    @TempDir
    Path folder;

    private static List<String> modules(String part) throws IOException {
        Object names =
                StrictJson.readObject(LAYOUTS.resolve("modules.json"), 1 << 20).get(part);
        return ((List<?>) names).stream().map(String.class::cast).toList();
    }

    private static Map<String, Double> scales(String name) throws IOException {
        Map<String, Double> scales = new LinkedHashMap<>();
        StrictJson.readObject(LAYOUTS.resolve("scales_" + name + ".json"), 1 << 20)
                .forEach((module, scale) -> scales.put(module, ((Number) scale).doubleValue()));
        return scales;
    }

    /** Each tensor as its type, shape and bytes. */
    static Map<String, String> content(Path file) throws IOException {
        Map<String, String> content = new LinkedHashMap<>();
        try (TensorFile tensors = TensorFile.open(file)) {
            for (TensorInfo info : tensors.tensors().values()) {
                byte[] bytes = tensors.read(info.name()).array();
                content.put(info.name(), info + " " + java.util.HexFormat.of().formatHex(bytes));
            }
        }
        return content.entrySet().stream()
                .sorted(Map.Entry.comparingByKey())
                .collect(Collectors.toMap(Map.Entry::getKey, Map.Entry::getValue, (a, b) -> a, LinkedHashMap::new));
    }

    private static void assertScales(LoraConfig config, Map<String, Double> scales) {
        assertThat(scales).isNotEmpty();
        scales.forEach(
                (module, scale) -> assertThat(config.scale(module)).as(module).isEqualTo(scale));
    }

    @ParameterizedTest
    @CsvSource({
        "kohya.safetensors,lora_unet,unet,unet",
        "kohya.safetensors,lora_te,text_encoder,text_encoder",
        "kohya.pt,lora_unet,unet,unet",
        "diffusers.safetensors,unet,unet,unet",
        "diffusers.safetensors,text_encoder,text_encoder,text_encoder",
        "diffusers_plain.safetensors,unet,unet,diffusers_plain",
        "diffusers_old.safetensors,unet,unet,diffusers_plain",
        "diffusers_old.safetensors,text_encoder,text_encoder,text_encoder"
    })
    void aFileBecomesTheAdapterOfPeftItWasMadeOf(String file, String part, String model, String scales)
            throws IOException {
        ForeignAdapter adapter = AdapterConverter.toPeft(LAYOUTS.resolve(file), part, modules(model), folder);
        assertThat(content(folder.resolve("adapter_model.safetensors")))
                .isEqualTo(content(LAYOUTS.resolve("peft_" + model + "/adapter_model.safetensors")));
        LoraConfig config = AdapterConfigJson.read(folder.resolve("adapter_config.json"));
        assertThat(config).isEqualTo(adapter.config());
        assertScales(config, scales(scales));
        LoraConfig peft = AdapterConfigJson.read(LAYOUTS.resolve("peft_" + model + "/adapter_config.json"));
        for (String module : scales(scales).keySet()) {
            assertThat(config.rankFor(module)).as(module).isEqualTo(peft.rankFor(module));
        }
        if (file.equals("diffusers.safetensors")) {
            // Its metadata holds the whole configuration.
            assertThat(config.targetModules()).isEqualTo(peft.targetModules());
            assertThat(config.alphaPattern()).isEqualTo(peft.alphaPattern());
        } else {
            assertThat(config.targetModules())
                    .hasToString(
                            scales(scales).keySet().stream().sorted().toList().toString());
        }
    }

    @ParameterizedTest
    @ValueSource(strings = {"kohya", "kohya_f16", "kohya_bf16"})
    void kohyaToPeftAndBackIsTheSameToTheBit(String name) throws IOException {
        Path file = LAYOUTS.resolve(name + ".safetensors");
        AdapterConverter.toPeft(file, "lora_unet", modules("unet"), folder.resolve("unet"));
        AdapterConverter.toPeft(file, "lora_te", modules("text_encoder"), folder.resolve("text"));
        Path back = folder.resolve("back.safetensors");
        AdapterConverter.toKohya(Map.of("lora_unet", folder.resolve("unet"), "lora_te", folder.resolve("text")), back);
        assertThat(content(back)).isEqualTo(content(file));
        try (SafetensorsFile before = SafetensorsFile.open(file);
                SafetensorsFile after = SafetensorsFile.open(back)) {
            Map<String, String> metadata = new LinkedHashMap<>(before.metadata());
            metadata.put("format", "pt");
            assertThat(after.metadata()).isEqualTo(metadata);
        }
    }

    @Test
    void peftToKohyaIsTheFileDiffusersTakes() throws IOException {
        Path file = folder.resolve("kohya.safetensors");
        AdapterConverter.toKohya(
                Map.of("lora_unet", LAYOUTS.resolve("peft_unet"), "lora_te", LAYOUTS.resolve("peft_text_encoder")),
                file);
        assertThat(content(file)).isEqualTo(content(LAYOUTS.resolve("kohya.safetensors")));
    }

    @Test
    void peftToDiffusersIsTheFileDiffusersWrites() throws IOException {
        Path file = folder.resolve("diffusers.safetensors");
        Map<String, Path> parts = new LinkedHashMap<>();
        parts.put("unet", LAYOUTS.resolve("peft_unet"));
        parts.put("text_encoder", LAYOUTS.resolve("peft_text_encoder"));
        AdapterConverter.toDiffusers(parts, file);
        assertThat(content(file)).isEqualTo(content(LAYOUTS.resolve("diffusers.safetensors")));
        assertThat(metadata(file)).isEqualTo(metadata(LAYOUTS.resolve("diffusers.safetensors")));

        AdapterConverter.toPeft(file, "unet", modules("unet"), folder);
        assertThat(folder.resolve("adapter_model.safetensors"))
                .hasSameBinaryContentAs(LAYOUTS.resolve("peft_unet/adapter_model.safetensors"));
        assertThat(folder.resolve("adapter_config.json"))
                .hasSameBinaryContentAs(LAYOUTS.resolve("peft_unet/adapter_config.json"));
    }

    /** What diffusers' metadata says, without what depends on whether the adapter was saved before. */
    private static Map<String, Object> metadata(Path file) throws IOException {
        try (SafetensorsFile tensors = SafetensorsFile.open(file)) {
            String json = tensors.metadata().get("lora_adapter_metadata");
            Map<String, Object> all = new LinkedHashMap<>(
                    StrictJson.parseObject(json.getBytes(java.nio.charset.StandardCharsets.UTF_8), "metadata"));
            all.keySet().removeIf(key -> key.endsWith(".inference_mode") || key.endsWith(".auto_mapping"));
            all.replaceAll((key, value) -> key.endsWith(".target_modules") ? sorted(value) : value);
            return all;
        }
    }

    private static Object sorted(Object names) {
        List<String> sorted = new ArrayList<>();
        ((List<?>) names).forEach(name -> sorted.add((String) name));
        java.util.Collections.sort(sorted);
        return sorted;
    }

    @Test
    void magnitudesOfDoraChangeTheirShapeOnly() throws IOException {
        Path kohya = LAYOUTS.resolve("kohya_dora.safetensors");
        AdapterConverter.toPeft(kohya, modules("unet"), folder);
        assertThat(content(folder.resolve("adapter_model.safetensors")))
                .isEqualTo(content(LAYOUTS.resolve("peft_dora/adapter_model.safetensors")));
        LoraConfig config = AdapterConfigJson.read(folder.resolve("adapter_config.json"));
        assertThat(config.otherFields()).containsEntry("use_dora", true);
        Path back = folder.resolve("back.safetensors");
        AdapterConverter.toKohya(Map.of("lora_unet", folder), back);
        assertThat(content(back)).isEqualTo(content(kohya));
        AdapterConverter.toDiffusers(Map.of("unet", folder), back);
        AdapterConverter.toPeft(back, modules("unet"), folder.resolve("again"));
        assertThat(folder.resolve("again/adapter_model.safetensors"))
                .hasSameBinaryContentAs(folder.resolve("adapter_model.safetensors"));
    }

    @Test
    void aFileForTwoModelsNeedsBothOrAPart() throws IOException {
        Path file = LAYOUTS.resolve("kohya.safetensors");
        List<String> unet = modules("unet");
        try (TensorFile tensors = TensorFile.open(file)) {
            assertThat(ForeignAdapter.parts(tensors)).containsExactly("lora_te", "lora_unet");
        }
        assertThatThrownBy(() -> AdapterConverter.toPeft(file, unet, folder))
                .isInstanceOf(FormatException.class)
                .hasMessageContaining("names without a module in the base model (the file has [lora_te, lora_unet]")
                .hasMessageContaining("lora_te_text_model_encoder_layers_1_mlp_fc1.lora_up.weight")
                .hasMessageNotContaining("lora_unet_conv_in.lora_down");
        assertThat(folder).isEmptyDirectory();

        List<String> pipeline = new ArrayList<>();
        unet.forEach(path -> pipeline.add("unet." + path));
        modules("text_encoder").forEach(path -> pipeline.add("text_encoder." + path));
        ForeignAdapter whole = AdapterConverter.toPeft(file, pipeline, folder);
        assertThat(whole.tensors()).hasSize(46);
        scales("unet")
                .forEach((module, scale) ->
                        assertThat(whole.config().scale("unet." + module)).isEqualTo(scale));
        ForeignAdapter diffusers =
                AdapterConverter.toPeft(LAYOUTS.resolve("diffusers.safetensors"), pipeline, folder.resolve("d"));
        assertThat(diffusers.config()).isEqualTo(whole.config());
        assertThat(content(folder.resolve("d/adapter_model.safetensors")))
                .isEqualTo(content(folder.resolve("adapter_model.safetensors")));
    }

    @Test
    void textModelMayBeMissingInTheModel() throws IOException {
        List<String> modules = modules("text_encoder").stream()
                .map(path -> path.replaceFirst("^text_model\\.?", ""))
                .filter(path -> !path.isEmpty())
                .toList();
        for (String[] file : new String[][] {{"kohya", "lora_te"}, {"diffusers_old", "text_encoder"}}) {
            Path source = LAYOUTS.resolve(file[0] + ".safetensors");
            ForeignAdapter adapter = AdapterConverter.toPeft(source, file[1], modules, folder);
            assertThat(adapter.tensors()).hasSize(12);
            assertThat(adapter.tensors().keySet()).allMatch(key -> key.startsWith("base_model.model.encoder.layers."));
        }
    }
}
