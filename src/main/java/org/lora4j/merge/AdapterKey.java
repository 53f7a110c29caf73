package org.lora4j.merge;

import java.util.LinkedHashMap;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/**
 * What the name of a tensor in PEFT's layout says.
 *
 * @param key the name
 * @param path the module; of a {@link Role#VALUE} the parameter
 * @param wrappers how many adapters of the same module's parameters lie around this one ({@code target_parameters})
 * @param role what it is to the module
 */
record AdapterKey(String key, String path, int wrappers, Role role) {
    static final String PREFIX = "base_model.model.";

    static final String BASE_LAYER = ".base_layer";

    /** What a tensor is to its module. */
    enum Role {
        A,
        B,
        EMBEDDING_A,
        EMBEDDING_B,
        /** A bias of B. */
        BIAS,
        /** DoRA's magnitudes. */
        MAGNITUDE,
        /** Rows in place of an embedding's. */
        TOKENS,
        /** A parameter in place of the base's. */
        VALUE
    }

    private static final Map<String, Role> SUFFIXES = new LinkedHashMap<>();

    static {
        SUFFIXES.put(".lora_A.weight", Role.A);
        SUFFIXES.put(".lora_B.weight", Role.B);
        SUFFIXES.put(".lora_embedding_A", Role.EMBEDDING_A);
        SUFFIXES.put(".lora_embedding_B", Role.EMBEDDING_B);
        SUFFIXES.put(".lora_B.bias", Role.BIAS);
        SUFFIXES.put(".lora_magnitude_vector", Role.MAGNITUDE);
        SUFFIXES.put(".lora_magnitude_vector.weight", Role.MAGNITUDE);
        SUFFIXES.put(".token_adapter.trainable_tokens_delta", Role.TOKENS);
    }

    /** The parts of a name, or null if it is none of PEFT's. */
    static @Nullable AdapterKey parse(String key) {
        if (!key.startsWith(PREFIX)) {
            return null;
        }
        String rest = key.substring(PREFIX.length());
        for (Map.Entry<String, Role> suffix : SUFFIXES.entrySet()) {
            if (rest.endsWith(suffix.getKey())
                    && rest.length() > suffix.getKey().length()) {
                String path = rest.substring(0, rest.length() - suffix.getKey().length());
                int wrappers = 0;
                while (path.endsWith(BASE_LAYER)) {
                    path = path.substring(0, path.length() - BASE_LAYER.length());
                    wrappers++;
                }
                return new AdapterKey(key, path, wrappers, suffix.getValue());
            }
        }
        boolean own = rest.contains(".lora_") || rest.contains("trainable_tokens") || rest.indexOf('.') < 0;
        return own ? null : new AdapterKey(key, rest.replace(BASE_LAYER + ".", "."), 0, Role.VALUE);
    }
}
