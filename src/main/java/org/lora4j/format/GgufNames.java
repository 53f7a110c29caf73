package org.lora4j.format;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.jspecify.annotations.Nullable;

/**
 * The names that llama.cpp gives the linear layers of a model.
 *
 * @param architecture its name of the kind of model
 * @param layers its names by those of Hugging Face, within a layer
 * @param queryHeads heads of the queries if their rows are in another order there, else 0
 * @param keyHeads likewise of the keys
 */
record GgufNames(String architecture, Map<String, String> layers, int queryHeads, int keyHeads) {
    private static final Pattern PEFT = Pattern.compile("(?:.*\\.)?layers\\.(\\d{1,6})\\.(.+)");
    private static final Pattern GGUF = Pattern.compile("blk\\.(\\d{1,6})\\.(.+)");
    private static final String OUTPUT = "lm_head";
    private static final long MAX_CONFIG = 16 << 20;

    private static final Map<String, String> DENSE = Map.of(
            "self_attn.q_proj", "attn_q",
            "self_attn.k_proj", "attn_k",
            "self_attn.v_proj", "attn_v",
            "self_attn.o_proj", "attn_output",
            "mlp.gate_proj", "ffn_gate",
            "mlp.up_proj", "ffn_up",
            "mlp.down_proj", "ffn_down");

    private static final Map<String, String> FUSED = Map.of(
            "self_attn.qkv_proj", "attn_qkv",
            "self_attn.o_proj", "attn_output",
            "mlp.gate_up_proj", "ffn_up",
            "mlp.down_proj", "ffn_down");

    private static final Map<String, String> ARCHITECTURES = new LinkedHashMap<>();

    static {
        ARCHITECTURES.put("llama", "llama");
        ARCHITECTURES.put("mistral", "llama");
        ARCHITECTURES.put("qwen2", "qwen2");
        ARCHITECTURES.put("qwen3", "qwen3");
        ARCHITECTURES.put("gemma", "gemma");
        ARCHITECTURES.put("gemma2", "gemma2");
        ARCHITECTURES.put("phi3", "phi3");
    }

    /** @param base {@code config.json}, or the folder that holds it */
    static GgufNames of(Path base) throws IOException {
        Path file = Files.isDirectory(base) ? base.resolve("config.json") : base;
        if (!Files.isRegularFile(file)) {
            throw new FormatException(file + ": is not there, and GGUF's names depend on the kind of model: name the"
                    + " folder of the base model");
        }
        Map<String, @Nullable Object> config = StrictJson.readObject(file, MAX_CONFIG);
        Object type = config.get("model_type");
        String architecture = type instanceof String name ? ARCHITECTURES.get(name) : null;
        if (architecture == null) {
            throw new FormatException(file + ": model_type is " + type + ", and GGUF's names are known for "
                    + ARCHITECTURES.keySet() + ": use llama.cpp's own converter");
        }
        if (!architecture.equals("llama")) {
            return new GgufNames(architecture, architecture.equals("phi3") ? FUSED : DENSE, 0, 0);
        }
        if (!(GgufAdapter.field(config, "num_attention_heads") instanceof Long heads) || heads < 1 || heads > 1 << 20) {
            throw new FormatException(file + ": has no num_attention_heads, which the order of rows depends on");
        }
        Object keys = GgufAdapter.field(config, "num_key_value_heads");
        long keyHeads = keys instanceof Long count && count > 0 ? count : heads;
        return new GgufNames(architecture, DENSE, heads.intValue(), (int) keyHeads);
    }

    /** The name of a module, or null if it has none. */
    @Nullable
    String toGguf(String path) {
        if (path.equals(OUTPUT)) {
            return "output";
        }
        Matcher layer = PEFT.matcher(path);
        String name = layer.matches() ? layers.get(layer.group(2)) : null;
        return name == null ? null : "blk." + Integer.parseInt(layer.group(1)) + "." + name;
    }

    /** The path of a module as models with nothing around them have it, or null. */
    @Nullable
    String toPeft(String name) {
        if (name.equals("output")) {
            return OUTPUT;
        }
        Matcher layer = GGUF.matcher(name);
        if (layer.matches()) {
            for (Map.Entry<String, String> entry : layers.entrySet()) {
                if (entry.getValue().equals(layer.group(2))) {
                    return "model.layers." + Integer.parseInt(layer.group(1)) + "." + entry.getKey();
                }
            }
        }
        return null;
    }

    /** Heads whose rows are in another order in GGUF, or 0. */
    int heads(String path) {
        return path.endsWith(".q_proj") ? queryHeads : path.endsWith(".k_proj") ? keyHeads : 0;
    }
}
