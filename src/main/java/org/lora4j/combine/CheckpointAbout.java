package org.lora4j.combine;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.TaskType;
import org.lora4j.format.StrictJson;

/** What a checkpoint's {@code config.json} says that an adapter depends on; nothing where there is none. */
record CheckpointAbout(Map<String, @Nullable Object> config) {
    private static final long LARGEST = 10_000_000;

    /** Model types whose linear layers are stored transposed. */
    private static final Set<String> TRANSPOSED = Set.of("gpt2", "openai-gpt", "imagegpt", "decision_transformer");

    static CheckpointAbout of(Path checkpoint) throws IOException {
        Path file = checkpoint.resolve("config.json");
        return new CheckpointAbout(Files.exists(file) ? StrictJson.readObject(file, LARGEST) : Map.of());
    }

    boolean isTransposed() {
        return config.get("model_type") instanceof String type && TRANSPOSED.contains(type);
    }

    /** Whether the output layer uses the embeddings. */
    boolean isTied() {
        return Boolean.TRUE.equals(config.get("tie_word_embeddings"));
    }

    @Nullable
    TaskType taskType() {
        boolean causal = config.get("architectures") instanceof List<?> names
                && names.stream().anyMatch(name -> String.valueOf(name).endsWith("ForCausalLM"));
        return causal ? TaskType.CAUSAL_LM : null;
    }
}
