package org.lora4j.format;

import java.io.Closeable;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.SafetensorsException.Defect;

/**
 * The tensors of a checkpoint in the layout of Hugging Face: one {@code model.safetensors}, or several shards and
 * {@code model.safetensors.index.json}. Index and shards are checked against each other before anything is read.
 */
public final class ShardedCheckpoint implements Closeable {
    /** The file of a checkpoint that is not sharded. */
    public static final String SINGLE_FILE = "model.safetensors";

    /** The index of a sharded checkpoint. */
    public static final String INDEX_FILE = "model.safetensors.index.json";

    private static final long MAX_INDEX_BYTES = 100_000_000;

    /**
     * Where a tensor is.
     *
     * @param file the shard that holds it
     * @param info the tensor there
     */
    public record Location(SafetensorsFile file, TensorInfo info) {}

    private final Map<String, SafetensorsFile> shards = new LinkedHashMap<>();
    private final Map<String, Location> tensors = new LinkedHashMap<>();

    private ShardedCheckpoint() {}

    /**
     * Opens a checkpoint.
     *
     * @param path a folder that holds one of the two files above, an index file, or one safetensors file
     * @throws SafetensorsException with the defect, if a shard or the index is defective
     */
    public static ShardedCheckpoint open(Path path) throws IOException {
        Path file = path;
        if (Files.isDirectory(path)) {
            Path single = path.resolve(SINGLE_FILE);
            file = Files.exists(single) ? single : path.resolve(INDEX_FILE);
            if (!Files.exists(file)) {
                throw new java.nio.file.NoSuchFileException(
                        path.toString(),
                        null,
                        "holds neither " + SINGLE_FILE + " nor " + INDEX_FILE + "; convert the checkpoint to one");
            }
        }
        ShardedCheckpoint checkpoint = new ShardedCheckpoint();
        try {
            if (file.getFileName().toString().endsWith(".json")) {
                checkpoint.openIndexed(file);
            } else {
                checkpoint.openShard(file.getFileName().toString(), file);
            }
        } catch (Throwable failure) {
            try {
                checkpoint.close();
            } catch (IOException e) {
                failure.addSuppressed(e);
            }
            throw failure;
        }
        return checkpoint;
    }

    private void openShard(String name, Path path) throws IOException {
        SafetensorsFile shard = SafetensorsFile.open(path);
        shards.put(name, shard);
        shard.tensors().forEach((tensor, info) -> tensors.putIfAbsent(tensor, new Location(shard, info)));
    }

    private void openIndexed(Path index) throws IOException {
        Map<String, String> weightMap = weightMap(index);
        for (String name : weightMap.values()) {
            if (!shards.containsKey(name)) {
                Path path = index.resolveSibling(name);
                if (!Files.isRegularFile(path)) {
                    throw wrong(
                            Defect.INDEX_SHARD_MISSING,
                            index,
                            "names the shard \"" + name + "\", which is not there; copy or download it");
                }
                openShard(name, path);
            }
        }
        for (Map.Entry<String, SafetensorsFile> shard : shards.entrySet()) {
            for (String tensor : shard.getValue().tensors().keySet()) {
                if (!shard.getKey().equals(weightMap.get(tensor))) {
                    throw wrong(
                            Defect.INDEX_TENSOR_UNLISTED,
                            index,
                            "does not put the tensor \"" + SafetensorsHeader.shorten(tensor) + "\" into the shard \""
                                    + shard.getKey() + "\", which holds it; get index and shards of one version");
                }
            }
        }
        for (Map.Entry<String, String> entry : weightMap.entrySet()) {
            if (!tensors.containsKey(entry.getKey())) {
                throw wrong(
                        Defect.INDEX_TENSOR_MISSING,
                        index,
                        "puts the tensor \"" + SafetensorsHeader.shorten(entry.getKey()) + "\" into the shard \""
                                + entry.getValue() + "\", which lacks it; get index and shards of one version");
            }
        }
    }

    /** The shard of each tensor, every name checked. */
    private static Map<String, String> weightMap(Path index) throws IOException {
        Map<String, @Nullable Object> json;
        try {
            json = StrictJson.readObject(index, MAX_INDEX_BYTES);
        } catch (FormatException e) {
            throw new SafetensorsException(Defect.INDEX_MALFORMED, String.valueOf(e.getMessage()), e);
        }
        if (!(json.get("weight_map") instanceof Map<?, ?> map)) {
            throw wrong(Defect.INDEX_MALFORMED, index, "has no object weight_map; check what it is");
        }
        Map<String, String> weightMap = new LinkedHashMap<>();
        for (Map.Entry<?, ?> entry : map.entrySet()) {
            if (!(entry.getValue() instanceof String shard)) {
                throw wrong(
                        Defect.INDEX_MALFORMED,
                        index,
                        "gives the tensor \"" + entry.getKey() + "\" no shard; name its file");
            }
            if (!isPlainName(shard)) {
                throw wrong(
                        Defect.INDEX_SHARD_NAME,
                        index,
                        "names the shard \"" + SafetensorsHeader.shorten(shard)
                                + "\", which is not the name of a .safetensors file beside it; do not trust its source");
            }
            weightMap.put((String) entry.getKey(), shard);
        }
        return weightMap;
    }

    private static boolean isPlainName(String name) {
        boolean plain = name.chars().noneMatch(c -> c == '/' || c == '\\' || c == ':' || c < ' ');
        return plain && name.endsWith(".safetensors") && !name.startsWith(".") && name.length() <= 255;
    }

    private static SafetensorsException wrong(Defect defect, Path index, String what) {
        return new SafetensorsException(defect, index + ": " + what);
    }

    /** Every tensor by name: shard by shard, in the order of the data. */
    public Map<String, Location> tensors() {
        return Collections.unmodifiableMap(tensors);
    }

    /**
     * Where one tensor is.
     *
     * @throws IllegalArgumentException if the checkpoint has none of this name
     */
    public Location tensor(String name) {
        Location location = tensors.get(name);
        if (location == null) {
            throw new IllegalArgumentException("the checkpoint with the files " + shards.keySet() + " has no tensor \""
                    + name + "\"; it has " + tensors.size() + ", see tensors()");
        }
        return location;
    }

    /** The files, in the order the index first names them. */
    public Collection<SafetensorsFile> files() {
        return Collections.unmodifiableCollection(shards.values());
    }

    @Override
    public void close() throws IOException {
        List<IOException> failures = new ArrayList<>();
        for (SafetensorsFile shard : shards.values()) {
            try {
                shard.close();
            } catch (IOException e) {
                failures.add(e);
            }
        }
        if (!failures.isEmpty()) {
            throw failures.get(0);
        }
    }
}
