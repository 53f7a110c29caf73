package org.lora4j.format;

import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Set;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.LoraKey.Role;

/**
 * The names of diffusers' tensors, {@code <part>.<path>.lora_A.weight}, and the older spellings that its own loaders
 * still take: {@code .lora.down.weight}, {@code .lora_linear_layer.down.weight}, and {@code .processor.to_q_lora.down.weight}
 * for the projections of an attention.
 */
final class DiffusersKeys {
    /** What the tensors mean by the ends of their names; the first that fits counts. */
    private static final Map<String, Role> SUFFIXES = new LinkedHashMap<>();

    static {
        SUFFIXES.put(".lora_A.weight", Role.A);
        SUFFIXES.put(".lora_B.weight", Role.B);
        SUFFIXES.put(".lora_B.bias", Role.B_BIAS);
        SUFFIXES.put(".lora_magnitude_vector", Role.MAGNITUDE);
        SUFFIXES.put(".lora_magnitude_vector.weight", Role.MAGNITUDE);
        SUFFIXES.put(".dora_scale", Role.MAGNITUDE);
        SUFFIXES.put(".lora_mid.weight", Role.MIDDLE);
        for (String old : new String[] {".lora_linear_layer.", ".lora.", ".lora_", "_lora."}) {
            SUFFIXES.put(old + "down.weight", Role.A);
            SUFFIXES.put(old + "up.weight", Role.B);
            SUFFIXES.put(old + "alpha", Role.ALPHA);
        }
        SUFFIXES.put(".alpha", Role.ALPHA);
    }

    private static final Set<String> PARTS = Set.of(
            "unet",
            "transformer",
            "transformer_2",
            "prior",
            "controlnet",
            "diffusion_model",
            "text_encoder",
            "text_encoder_2",
            "text_encoder_3");

    /** The projections of an attention in a text encoder by their old names. */
    private static final Map<String, String> TEXT_PROJECTIONS =
            Map.of("to_q", "q_proj", "to_k", "k_proj", "to_v", "v_proj", "to_out", "out_proj");

    private DiffusersKeys() {}

    static boolean isOne(String key) {
        LoraKey parsed = parse(key);
        return parsed != null && parsed.role() != Role.ALPHA;
    }

    static boolean isPart(String part) {
        return part.isEmpty() || PARTS.contains(part);
    }

    static @Nullable LoraKey parse(String key) {
        for (Map.Entry<String, Role> suffix : SUFFIXES.entrySet()) {
            int end = key.length() - suffix.getKey().length();
            if (end > 0 && key.endsWith(suffix.getKey())) {
                boolean projection = suffix.getKey().startsWith("_lora");
                return parsed(key, key.substring(0, end), projection, suffix.getValue());
            }
        }
        return null;
    }

    private static @Nullable LoraKey parsed(String key, String path, boolean projection, Role role) {
        int dot = path.indexOf('.');
        String part = dot > 0 && PARTS.contains(path.substring(0, dot)) ? path.substring(0, dot) : "";
        String module = part.isEmpty() ? path : path.substring(dot + 1);
        module = module.replace(".processor.", ".");
        if (projection) {
            int last = module.lastIndexOf('.');
            String name = module.substring(last + 1);
            boolean text = part.startsWith("text_encoder") || module.contains("self_attn.");
            String renamed =
                    text ? TEXT_PROJECTIONS.getOrDefault(name, name) : name.equals("to_out") ? "to_out.0" : name;
            module = module.substring(0, last + 1) + renamed;
        }
        return module.isEmpty() ? null : new LoraKey(key, part, module, role);
    }

    static String key(String part, String path, Role role) {
        return (part.isEmpty() ? "" : part + ".") + path + PeftKeys.suffix(role);
    }
}
