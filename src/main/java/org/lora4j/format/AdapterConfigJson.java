package org.lora4j.format;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.ModuleSelector;

/** Reads and writes PEFT's {@code adapter_config.json}. */
public final class AdapterConfigJson {
    /** The file's name in the folder of an adapter. */
    public static final String FILE_NAME = "adapter_config.json";

    /** Larger files are refused. */
    public static final long MAX_BYTES = 16 << 20;

    private AdapterConfigJson() {}

    /**
     * Reads a configuration. Keys that are missing take PEFT's defaults; keys and initialisations PEFT 0.21 does not
     * know are kept, see {@link LoraConfig#warnings()}.
     *
     * @throws FormatException naming file, key and rule, if the file is not a LoRA configuration that PEFT would accept
     */
    public static LoraConfig read(Path file) throws IOException {
        return AdapterConfigReader.config(StrictJson.readObject(file, MAX_BYTES), file.toString());
    }

    /**
     * Parses a configuration.
     *
     * @param source what the text is, for messages
     */
    public static LoraConfig parse(String json, String source) throws FormatException {
        byte[] bytes = json.getBytes(StandardCharsets.UTF_8);
        return AdapterConfigReader.config(StrictJson.parseObject(bytes, source), source);
    }

    /** Writes a configuration, replacing a file that exists in a single step. */
    public static void write(Path file, LoraConfig config) throws IOException {
        ByteBuffer bytes = ByteBuffer.wrap(text(config).getBytes(StandardCharsets.UTF_8));
        AtomicFile.write(file, out -> SafetensorsWriter.writeFully(out, bytes));
    }

    /**
     * The text of a configuration in PEFT's form: every key, sorted, indented by two. Only rank_pattern and
     * alpha_pattern keep their order, since the first pattern that matches decides.
     */
    public static String text(LoraConfig config) {
        return JsonText.of(entries(config));
    }

    /** Every key with its value, for {@link JsonText}. */
    static Map<String, @Nullable Object> entries(LoraConfig config) {
        Map<String, @Nullable Object> json = new LinkedHashMap<>(config.otherFields());
        json.put("peft_type", AdapterConfigReader.PEFT_TYPE);
        json.put("r", (long) config.r());
        json.put("lora_alpha", number(config.loraAlpha()));
        json.put("target_modules", selector(config.targetModules()));
        json.put("exclude_modules", selector(config.excludeModules()));
        json.put("lora_dropout", config.loraDropout());
        json.put("bias", config.bias().jsonName());
        json.put("modules_to_save", listOrNull(List.copyOf(config.modulesToSave())));
        json.put("layers_to_transform", listOrNull(config.layersToTransform()));
        json.put("layers_pattern", listOrNull(config.layersPattern()));
        json.put("rank_pattern", new JsonText.Ordered(config.rankPattern()));
        Map<String, Object> alphas = new LinkedHashMap<>();
        config.alphaPattern().forEach((pattern, alpha) -> alphas.put(pattern, number(alpha)));
        json.put("alpha_pattern", new JsonText.Ordered(alphas));
        json.put("use_rslora", config.useRslora());
        json.put("fan_in_fan_out", config.fanInFanOut());
        json.put("init_lora_weights", config.initLoraWeights().jsonValue());
        json.put(
                "task_type",
                config.taskType() == null ? null : config.taskType().name());
        json.put("base_model_name_or_path", config.baseModelNameOrPath());
        json.put("revision", config.revision());
        json.put("inference_mode", config.inferenceMode());
        json.put("peft_version", config.peftVersion());
        return json;
    }

    /** A whole number without a fraction, as PEFT's default 8 is written. */
    private static Object number(double value) {
        return value == Math.rint(value) && Math.abs(value) < 1L << 53 ? (Object) (long) value : (Object) value;
    }

    private static @Nullable Object listOrNull(List<?> list) {
        return list.isEmpty() ? null : list;
    }

    private static @Nullable Object selector(@Nullable ModuleSelector selector) {
        if (selector instanceof ModuleSelector.Names names) {
            return List.copyOf(names.names());
        }
        if (selector instanceof ModuleSelector.Regex regex) {
            return regex.regex();
        }
        return selector == null ? null : ModuleSelector.ALL_LINEAR;
    }
}
