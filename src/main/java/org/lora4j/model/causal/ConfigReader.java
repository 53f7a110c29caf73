package org.lora4j.model.causal;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import org.jspecify.annotations.Nullable;

/**
 * Reads config.json with the rules and defaults of transformers 5.17 (configuration_llama, _mistral, _qwen2, _qwen3 and
 * modeling_rope_utils).
 */
final class ConfigReader {
    private static final double DEFAULT_THETA = 10_000;
    static final String FULL = "full_attention";
    static final String SLIDING = "sliding_attention";

    private final JsonFields json;
    private final @Nullable JsonFields generation;
    private final Family family;

    private ConfigReader(JsonFields json, @Nullable JsonFields generation) {
        this.json = json;
        this.generation = generation;
        this.family = family(json);
    }

    static CausalConfig read(Path folder) throws IOException {
        Path generation = folder.resolve("generation_config.json");
        return new ConfigReader(
                        JsonFields.read(folder.resolve("config.json")),
                        Files.isRegularFile(generation) ? JsonFields.read(generation) : null)
                .config();
    }

    static CausalConfig parse(String text) {
        return new ConfigReader(JsonFields.parse(text, "config.json"), null).config();
    }

    private static Family family(JsonFields json) {
        String type = json.text("model_type");
        Family family = type == null ? null : Family.ofModelType(type);
        if (type != null && family == null) {
            throw json.error("model_type", "one of " + Family.supported());
        }
        List<String> architectures = json.texts("architectures");
        if (architectures != null && !architectures.isEmpty()) {
            Family named = Family.ofArchitecture(architectures.get(0));
            if (architectures.size() != 1 || named == null || (family != null && named != family)) {
                throw json.error(
                        "architectures",
                        family == null
                                ? "a causal language model of one of " + Family.supported()
                                : "[\"" + family.architecture() + "\"], which goes with model_type "
                                        + family.modelType());
            }
            family = named;
        }
        if (family == null) {
            throw json.error("model_type", "one of " + Family.supported());
        }
        return family;
    }

    private CausalConfig config() {
        refuse("quantization_config", "absent: load a checkpoint in float32, bfloat16 or float16");
        int layers = json.integer("num_hidden_layers");
        int heads = json.integer("num_attention_heads");
        int hidden = json.integer("hidden_size");
        boolean attentionBias = family != Family.MISTRAL && json.flag("attention_bias", false);
        int window = window();
        try {
            return new CausalConfig(
                    family,
                    json.integer("vocab_size"),
                    hidden,
                    json.integer("intermediate_size"),
                    layers,
                    heads,
                    kvHeads(heads),
                    headDim(hidden, heads),
                    activation(),
                    json.number("rms_norm_eps", 1e-6),
                    family == Family.QWEN2 || attentionBias,
                    family != Family.QWEN2 && attentionBias,
                    family == Family.LLAMA && json.flag("mlp_bias", false),
                    family == Family.QWEN3,
                    json.flag("tie_word_embeddings", false),
                    maxPositions(),
                    rope(),
                    window,
                    slidingLayers(layers, window),
                    json.number("attention_dropout", 0),
                    special("bos_token_id", 1).stream().findFirst().orElse(null),
                    special("eos_token_id", 2),
                    special("pad_token_id", -1).stream().findFirst().orElse(null));
        } catch (IllegalArgumentException e) {
            String message = e.getMessage();
            throw message != null && message.startsWith(json.name())
                    ? e
                    : new IllegalArgumentException(json.name() + ": " + message, e);
        }
    }

    private void refuse(String field, String rule) {
        if (json.present(field)) {
            throw json.error(field, rule);
        }
    }

    private boolean qwen() {
        return family == Family.QWEN2 || family == Family.QWEN3;
    }

    /** Ids as generation_config.json has them, else config.json; -1 and Qwen have no default. */
    private List<Long> special(String field, long fallback) {
        if (generation != null && generation.present(field)) {
            return generation.tokenIds(field);
        }
        if (json.has(field)) {
            return json.tokenIds(field);
        }
        return qwen() || fallback < 0 ? List.of() : List.of(fallback);
    }

    private int kvHeads(int heads) {
        if (json.has("num_key_value_heads")) {
            return json.integer("num_key_value_heads", heads);
        }
        return switch (family) {
            case LLAMA -> heads;
            case MISTRAL -> 8;
            case QWEN2, QWEN3 -> 32;
        };
    }

    private int headDim(int hidden, int heads) {
        if (json.present("head_dim")) {
            return json.integer("head_dim");
        }
        if (family == Family.QWEN3 && !json.has("head_dim")) {
            return 128;
        }
        if (heads < 1 || hidden % heads != 0) {
            throw json.error("hidden_size", "a multiple of num_attention_heads (" + heads + "), or set head_dim");
        }
        return hidden / heads;
    }

    private Activation activation() {
        String name = json.text("hidden_act");
        Activation activation = name == null ? Activation.SILU : Activation.of(name);
        if (activation == null) {
            throw json.error("hidden_act", "one of " + Activation.supported());
        }
        return activation;
    }

    private int maxPositions() {
        return json.integer(
                "max_position_embeddings",
                switch (family) {
                    case LLAMA -> 2048;
                    case MISTRAL -> 4096 * 32;
                    case QWEN2, QWEN3 -> 32768;
                });
    }

    /** The window, or 0 where the model has none. Mistral and Qwen have 4096 where the field is absent. */
    private int window() {
        boolean used = family == Family.MISTRAL || (qwen() && json.flag("use_sliding_window", false));
        if (!used || (json.has("sliding_window") && !json.present("sliding_window"))) {
            return 0;
        }
        int window = json.integer("sliding_window", 4096);
        if (window < 1) {
            throw json.error("sliding_window", "at least 1, or null for none");
        }
        return window;
    }

    /** Mistral slides everywhere; Qwen by {@code layer_types}, else from layer {@code max_window_layers} on. */
    private List<Boolean> slidingLayers(int layers, int window) {
        List<Boolean> sliding = new ArrayList<>();
        int first = qwen() ? json.integer("max_window_layers", 28) : 0;
        for (int i = 0; i < layers; i++) {
            sliding.add(window > 0 && i >= first);
        }
        List<String> types = json.texts("layer_types");
        if (types == null) {
            return sliding;
        }
        if (!Set.of(FULL, SLIDING).containsAll(types)) {
            throw json.error("layer_types", "a list of " + FULL + " and " + SLIDING);
        }
        List<Boolean> named = types.stream().map(SLIDING::equals).toList();
        if (!qwen() && !named.equals(sliding)) {
            throw json.error(
                    "layer_types",
                    layers + " times "
                            + (window > 0 ? SLIDING : FULL)
                            + " or absent: " + family.modelType() + " treats all layers alike");
        }
        return named;
    }

    private RopeScaling rope() {
        JsonFields old = json.object("rope_scaling");
        JsonFields rope = old != null ? old : json.object("rope_parameters");
        double theta = json.number("rope_theta", DEFAULT_THETA);
        fullRotation(json);
        if (rope == null) {
            return RopeScaling.plain(theta);
        }
        if (rope.has(FULL) || rope.has(SLIDING)) {
            throw json.error(
                    old != null ? "rope_scaling" : "rope_parameters", "one set for all layers, not one for each type");
        }
        fullRotation(rope);
        theta = rope.number("rope_theta", theta);
        String type = rope.text("rope_type");
        type = type == null ? rope.text("type") : type;
        return switch (type == null ? "default" : type) {
            case "default" -> RopeScaling.plain(theta);
            case "linear" -> RopeScaling.linear(theta, rope.number("factor"));
            case "llama3" ->
                new RopeScaling(
                        RopeScaling.Type.LLAMA3,
                        theta,
                        rope.number("factor"),
                        rope.number("low_freq_factor"),
                        rope.number("high_freq_factor"),
                        originalPositions(rope));
            default -> throw rope.error(rope.has("rope_type") ? "rope_type" : "type", "default, linear or llama3");
        };
    }

    private int originalPositions(JsonFields rope) {
        String field = "original_max_position_embeddings";
        return json.present(field) ? json.integer(field) : rope.integer(field, maxPositions());
    }

    private static void fullRotation(JsonFields fields) {
        if (fields.number("partial_rotary_factor", 1) != 1) {
            throw fields.error("partial_rotary_factor", "1 or absent: every head is turned whole");
        }
    }
}
