package org.lora4j.format;

import java.util.Map;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.LoraKey.Role;

/** The names of PEFT's tensors. */
final class PeftKeys {
    static final String PREFIX = "base_model.model.";

    private static final Map<Role, String> SUFFIXES = Map.of(
            Role.A, ".lora_A.weight",
            Role.B, ".lora_B.weight",
            Role.B_BIAS, ".lora_B.bias",
            Role.MAGNITUDE, ".lora_magnitude_vector");

    private PeftKeys() {}

    static String suffix(Role role) {
        return java.util.Objects.requireNonNull(SUFFIXES.get(role), "PEFT has no tensor of its own for this");
    }

    /** The parts of a name, or null if it is none of a module's tensors. */
    static @Nullable LoraKey parse(String key) {
        for (Map.Entry<Role, String> suffix : SUFFIXES.entrySet()) {
            int end = key.length() - suffix.getValue().length();
            if (key.startsWith(PREFIX) && key.endsWith(suffix.getValue()) && end > PREFIX.length()) {
                return new LoraKey(key, "", key.substring(PREFIX.length(), end), suffix.getKey());
            }
        }
        return null;
    }
}
