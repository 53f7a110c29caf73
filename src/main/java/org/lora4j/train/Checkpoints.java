package org.lora4j.train;

import java.io.IOException;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.jspecify.annotations.Nullable;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;
import tools.jackson.core.JacksonException;
import tools.jackson.databind.json.JsonMapper;

/**
 * The checkpoints of a run: folders {@code checkpoint-N} that PEFT can load, with the optimizer's state and the position
 * beside the adapter. A folder appears whole or not at all: it is written under another name, forced to disk and renamed.
 */
final class Checkpoints {
    private static final String PREFIX = "checkpoint-";
    private static final String BEST = "best-";
    private static final String OPTIMIZER = "optimizer.safetensors";
    private static final String STATE = "train_state.json";
    private static final JsonMapper JSON = JsonMapper.builder().build();

    private final Path folder;
    private final Saver saver;

    /** Writes the adapter that is trained into a folder, in PEFT's format. */
    interface Saver {
        void save(Path folder) throws IOException;
    }

    Checkpoints(Path folder, Saver saver) {
        this.folder = folder;
        this.saver = saver;
    }

    /** Writes a checkpoint and removes those beyond the newest {@code keep}. */
    Path write(TrainState state, AdamW optimizer, int keep) throws IOException {
        Path written = whole(PREFIX + state.step(), part -> {
            saver.save(part);
            try (PointerScope scope = new PointerScope()) {
                TensorFiles.write(part.resolve(OPTIMIZER), optimizer.state(), TensorFiles.METADATA);
            }
            Files.writeString(part.resolve(STATE), JSON.writeValueAsString(state));
            force(part.resolve(STATE));
        });
        List<Path> old = numbered(PREFIX);
        for (Path each : old.subList(0, Math.max(0, old.size() - keep))) {
            delete(each);
        }
        return written;
    }

    /** Keeps the adapter as the best so far. */
    void writeBest(int step) throws IOException {
        whole(BEST + step, saver::save);
        List<Path> old = numbered(BEST);
        for (Path each : old) {
            if (!each.getFileName().toString().equals(BEST + step)) {
                delete(each);
            }
        }
    }

    /** The folder of the best adapter, or null. */
    @Nullable
    Path best() throws IOException {
        List<Path> found = numbered(BEST);
        return found.isEmpty() ? null : found.get(found.size() - 1);
    }

    /** The newest checkpoint, or null. */
    @Nullable
    Path newest() throws IOException {
        List<Path> found = numbered(PREFIX);
        return found.isEmpty() ? null : found.get(found.size() - 1);
    }

    static TrainState readState(Path checkpoint) throws IOException {
        Path file = checkpoint.resolve(STATE);
        try {
            return JSON.readValue(Files.readString(file), TrainState.class);
        } catch (JacksonException e) {
            throw new IOException(
                    file + " is damaged (" + e.getOriginalMessage() + "): remove " + checkpoint
                            + " to resume from an older checkpoint",
                    e);
        }
    }

    static void restore(Path checkpoint, AdamW optimizer, int step) throws IOException {
        try (PointerScope scope = new PointerScope();
                MappedTensors tensors = TensorFiles.open(checkpoint.resolve(OPTIMIZER))) {
            Map<String, Tensor> values = new LinkedHashMap<>();
            tensors.names().forEach(name -> values.put(name, tensors.tensor(name)));
            optimizer.restore(values, step);
        } catch (IllegalArgumentException e) {
            throw new IllegalArgumentException("cannot resume from " + checkpoint + ": " + e.getMessage(), e);
        }
    }

    private interface Content {
        void writeTo(Path part) throws IOException;
    }

    private Path whole(String name, Content content) throws IOException {
        Files.createDirectories(folder);
        Path part = folder.resolve("." + name + ".part");
        Path target = folder.resolve(name);
        delete(part);
        Files.createDirectories(part);
        content.writeTo(part);
        force(part);
        delete(target);
        Files.move(part, target, StandardCopyOption.ATOMIC_MOVE);
        force(folder);
        return target;
    }

    private static void force(Path path) throws IOException {
        try (FileChannel channel = FileChannel.open(path, StandardOpenOption.READ)) {
            channel.force(true);
        }
    }

    /** Folders of a kind, the lowest number first. */
    private List<Path> numbered(String prefix) throws IOException {
        if (!Files.isDirectory(folder)) {
            return List.of();
        }
        try (Stream<Path> entries = Files.list(folder)) {
            return entries.filter(each -> each.getFileName().toString().matches(prefix + "[0-9]{1,9}"))
                    .sorted(Comparator.comparingInt(each ->
                            Integer.parseInt(each.getFileName().toString().substring(prefix.length()))))
                    .toList();
        }
    }

    private static void delete(Path path) throws IOException {
        if (!Files.exists(path)) {
            return;
        }
        List<Path> deepestFirst;
        try (Stream<Path> all = Files.walk(path)) {
            deepestFirst = all.sorted(Comparator.reverseOrder()).toList();
        }
        for (Path each : deepestFirst) {
            Files.delete(each);
        }
    }
}
