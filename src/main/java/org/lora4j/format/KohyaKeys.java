package org.lora4j.format;

import java.util.List;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.LoraKey.Role;

/** The names of kohya's tensors: {@code <part>_<path with underscores for dots>.<role>}. */
final class KohyaKeys {
    private static final Pattern KEY = Pattern.compile("(lora_[a-z0-9]+)_([^.]+)\\.(.+)");
    private static final Pattern PART = Pattern.compile("lora_[a-z0-9]+");

    private static final Map<String, Role> ROLES = Map.of(
            "lora_down.weight", Role.A,
            "lora_up.weight", Role.B,
            "lora_mid.weight", Role.MIDDLE,
            "alpha", Role.ALPHA,
            "dora_scale", Role.MAGNITUDE);

    /** The names of the parts in a pipeline of diffusers, for a base model that holds several. */
    private static final Map<String, List<String>> PARTS = Map.of(
            "lora_unet", List.of("unet", "transformer"),
            "lora_te", List.of("text_encoder"),
            "lora_te1", List.of("text_encoder"),
            "lora_te2", List.of("text_encoder_2"),
            "lora_te3", List.of("text_encoder_3"));

    private KohyaKeys() {}

    static boolean isOne(String key) {
        return KEY.matcher(key).matches();
    }

    static boolean isPart(String part) {
        return PART.matcher(part).matches();
    }

    static @Nullable LoraKey parse(String key) {
        Matcher matcher = KEY.matcher(key);
        Role role = matcher.matches() ? ROLES.get(matcher.group(3)) : null;
        return role == null ? null : new LoraKey(key, matcher.group(1), matcher.group(2), role);
    }

    static List<String> pipelineNames(String part) {
        return PARTS.getOrDefault(part, List.of());
    }

    static String flatten(String path) {
        return path.replace('.', '_');
    }

    static String key(String part, String path, Role role) {
        for (Map.Entry<String, Role> entry : ROLES.entrySet()) {
            if (entry.getValue() == role) {
                return part + "_" + flatten(path) + "." + entry.getKey();
            }
        }
        throw new IllegalArgumentException("kohya's layout has no tensor for " + role + "; leave it out");
    }
}
