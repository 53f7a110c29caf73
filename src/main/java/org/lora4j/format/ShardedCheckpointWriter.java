package org.lora4j.format;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.Stream;

/**
 * Writes a checkpoint in the layout {@link ShardedCheckpoint} reads. Tensors fill one shard after another in the order
 * they are added; a tensor larger than the limit gets a shard of its own.
 */
public final class ShardedCheckpointWriter {
    private final Map<String, String> metadata;
    private final long maxShardBytes;
    private final Set<String> names = new LinkedHashSet<>();
    private final List<SafetensorsWriter> shards = new ArrayList<>();
    private final List<List<String>> shardNames = new ArrayList<>();

    /**
     * A checkpoint without tensors.
     *
     * @param metadata the metadata of every shard; PEFT and transformers expect {@code format} to be {@code pt}
     * @param maxShardBytes the most bytes of tensors in one shard
     */
    public ShardedCheckpointWriter(Map<String, String> metadata, long maxShardBytes) {
        if (maxShardBytes < 1) {
            throw new IllegalArgumentException("maxShardBytes = " + maxShardBytes + ": must be at least 1");
        }
        this.metadata = metadata;
        this.maxShardBytes = maxShardBytes;
    }

    /**
     * Adds a tensor; its source is asked for its bytes while writing.
     *
     * @throws IllegalArgumentException naming the tensor, if its name is taken or not allowed or its size impossible
     */
    public ShardedCheckpointWriter add(String name, DType dtype, long[] shape, TensorSource source) {
        if (!names.add(name)) {
            throw new IllegalArgumentException(
                    "tensor \"" + name + "\": was added before; give each tensor its own name");
        }
        SafetensorsWriter alone = new SafetensorsWriter(metadata).add(name, dtype, shape, source);
        boolean fits = !shards.isEmpty() && last(shards).dataBytes() + alone.dataBytes() <= maxShardBytes;
        if (fits) {
            last(shards).add(name, dtype, shape, source);
        } else {
            shards.add(alone);
            shardNames.add(new ArrayList<>());
        }
        last(shardNames).add(name);
        return this;
    }

    private static <T> T last(List<T> list) {
        return list.get(list.size() - 1);
    }

    /**
     * Writes the checkpoint into a folder that holds none. The index comes last: until it is there nobody takes the
     * folder for a checkpoint, and if writing fails the shards are removed.
     *
     * @param folder an existing folder
     * @return the files written
     */
    public List<Path> write(Path folder) throws IOException {
        refuseExisting(folder);
        List<Path> written = new ArrayList<>();
        try {
            if (shards.size() <= 1) {
                Path file = folder.resolve(ShardedCheckpoint.SINGLE_FILE);
                (shards.isEmpty() ? new SafetensorsWriter(metadata) : shards.get(0)).write(file);
                return List.of(file);
            }
            Map<String, Object> weightMap = new LinkedHashMap<>();
            long total = 0;
            for (int i = 0; i < shards.size(); i++) {
                String shard = String.format("model-%05d-of-%05d.safetensors", i + 1, shards.size());
                shardNames.get(i).forEach(name -> weightMap.put(name, shard));
                total = Math.addExact(total, shards.get(i).dataBytes());
                shards.get(i).write(folder.resolve(shard));
                written.add(folder.resolve(shard));
            }
            String json = JsonText.of(Map.of("metadata", Map.of("total_size", total), "weight_map", weightMap)) + "\n";
            Path index = folder.resolve(ShardedCheckpoint.INDEX_FILE);
            ByteBuffer bytes = ByteBuffer.wrap(json.getBytes(StandardCharsets.UTF_8));
            AtomicFile.write(index, out -> SafetensorsWriter.writeFully(out, bytes));
            written.add(index);
            return written;
        } catch (Throwable failure) {
            for (Path file : written) {
                try {
                    Files.deleteIfExists(file);
                } catch (IOException e) {
                    failure.addSuppressed(e);
                }
            }
            throw failure;
        }
    }

    private static void refuseExisting(Path folder) throws IOException {
        try (Stream<Path> files = Files.list(folder)) {
            for (Path file : (Iterable<Path>) files::iterator) {
                String name = file.getFileName().toString();
                if (name.equals(ShardedCheckpoint.INDEX_FILE) || name.matches("model(-.*)?\\.safetensors")) {
                    throw new FileAlreadyExistsException(
                            file.toString(), null, "a checkpoint is here already; write into another folder");
                }
            }
        }
    }
}
