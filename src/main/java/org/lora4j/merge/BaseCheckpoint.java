package org.lora4j.merge;

import java.io.Closeable;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeSet;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.SafetensorsFile;
import org.lora4j.format.ShardedCheckpoint;
import org.lora4j.format.ShardedCheckpoint.Location;
import org.lora4j.format.StrictJson;

/** The checkpoint adapters are merged into: its tensors, and what {@code config.json} says of them. */
final class BaseCheckpoint implements Closeable {
    static final String CONFIG = "config.json";

    private static final long MAX_CONFIG_BYTES = 16 << 20;
    private static final List<String> INPUTS = List.of(
            "embed_tokens",
            "wte",
            "word_embeddings",
            "embed_in",
            "tok_embeddings",
            "token_embd",
            "shared",
            "embeddings");
    private static final List<String> OUTPUTS = List.of("lm_head", "embed_out", "output_projection");

    private final Path path;
    private final ShardedCheckpoint tensors;
    private final Map<String, @Nullable Object> config;
    private final List<FileState> states = new ArrayList<>();
    private final TreeSet<String> names;

    private BaseCheckpoint(Path path, ShardedCheckpoint tensors, Map<String, @Nullable Object> config)
            throws IOException {
        this.path = path;
        this.tensors = tensors;
        this.config = config;
        this.names = new TreeSet<>(tensors.tensors().keySet());
        for (SafetensorsFile file : tensors.files()) {
            states.add(FileState.of(file.path()));
        }
    }

    static BaseCheckpoint open(Path path) throws IOException {
        Path json = path.resolve(CONFIG);
        Map<String, @Nullable Object> config =
                Files.isRegularFile(json) ? StrictJson.readObject(json, MAX_CONFIG_BYTES) : Map.of();
        ShardedCheckpoint tensors = ShardedCheckpoint.open(path);
        try {
            return new BaseCheckpoint(path, tensors, config);
        } catch (Throwable failure) {
            tensors.close();
            throw failure;
        }
    }

    /** What was opened: a folder or a file. */
    Path path() {
        return path;
    }

    /** The folder with the checkpoint's other files, or null if one file was opened alone. */
    @Nullable
    Path folder() {
        return Files.isDirectory(path) ? path : null;
    }

    Map<String, Location> tensors() {
        return tensors.tensors();
    }

    List<SafetensorsFile> files() {
        return List.copyOf(tensors.files());
    }

    @Nullable
    Location find(String name) {
        return tensors.tensors().get(name);
    }

    /** Whether a module of this path has tensors, or there is one of just this name. */
    boolean has(String path) {
        String next = names.ceiling(path + ".");
        return names.contains(path) || next != null && next.startsWith(path + ".");
    }

    /** The names of all tensors, sorted. */
    TreeSet<String> names() {
        return names;
    }

    /** The entries of {@code config.json}; empty without one. */
    Map<String, @Nullable Object> config() {
        return config;
    }

    /** A field of the configuration or of the part of it that describes the language model. */
    @Nullable
    Object field(String name) {
        Object value = config.get(name);
        if (value == null && config.get("text_config") instanceof Map<?, ?> text) {
            value = text.get(name);
        }
        return value;
    }

    String modelType() {
        return config.get("model_type") instanceof String type ? type : "";
    }

    /** Whether the output layer has the embedding's weights. */
    boolean tied() {
        return Boolean.TRUE.equals(field("tie_word_embeddings"));
    }

    /** The name of the embedding's weight if there is exactly one. */
    @Nullable
    String inputEmbedding() {
        List<String> found = names.stream().filter(BaseCheckpoint::isInput).toList();
        return found.size() == 1 ? found.get(0) : null;
    }

    static boolean isInput(String tensor) {
        return INPUTS.contains(module(tensor)) && tensor.endsWith(".weight");
    }

    static boolean isOutput(String tensor) {
        return OUTPUTS.contains(module(tensor)) && tensor.endsWith(".weight");
    }

    /** The last part of the path of a tensor's module. */
    private static String module(String tensor) {
        int end = Math.max(tensor.lastIndexOf('.'), 0);
        return tensor.substring(tensor.lastIndexOf('.', end - 1) + 1, end);
    }

    /** @throws org.lora4j.format.FormatException if a file is not the one that was opened */
    void checkUnchanged() throws IOException {
        for (FileState state : states) {
            state.check();
        }
    }

    List<FileState> states() {
        return states;
    }

    @Override
    public void close() throws IOException {
        tensors.close();
    }
}
