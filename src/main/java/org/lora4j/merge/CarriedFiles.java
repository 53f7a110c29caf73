package org.lora4j.merge;

import java.io.IOException;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.AtomicFile;
import org.lora4j.format.ShardedCheckpoint;
import org.lora4j.format.StrictJson;

/** The files of a checkpoint beside its weights: configuration, tokenizer and the index of the shards. */
final class CarriedFiles {
    private static final Pattern WEIGHTS = Pattern.compile(
            ".*\\.(safetensors|bin|pt|pth|ckpt|gguf|h5|msgpack|onnx|part|npz)|.*\\.index\\.json|adapter_config\\.json");

    private CarriedFiles() {}

    /** The files that are carried over, sorted; other weights and hidden files are not. */
    static List<Path> of(BaseCheckpoint base) throws IOException {
        Path folder = base.folder();
        if (folder == null) {
            return List.of();
        }
        try (Stream<Path> files = Files.list(folder)) {
            return files.filter(Files::isRegularFile)
                    .filter(file -> !WEIGHTS.matcher(name(file)).matches())
                    .filter(file -> !name(file).startsWith(".") && !name(file).equals(MergeManifest.FILE_NAME))
                    .sorted()
                    .toList();
        }
    }

    private static String name(Path file) {
        return file.getFileName().toString();
    }

    /** Writes them and the index into the folder of the result and gives their hashes by name. */
    static Map<String, String> write(MergeSession session, Path folder) throws IOException {
        Map<String, String> hashes = new TreeMap<>();
        for (Path file : of(session.base())) {
            Path target = folder.resolve(name(file));
            Map<String, Object> changes = session.matching().configChanges();
            if (name(file).equals(BaseCheckpoint.CONFIG) && !changes.isEmpty()) {
                Json.write(target, changed(session.base().config(), changes));
            } else {
                copy(file, target);
            }
            hashes.put(name(file), Hash.of(target));
        }
        byte[] index = index(session);
        if (index != null) {
            Path target = folder.resolve(ShardedCheckpoint.INDEX_FILE);
            Json.write(target, index);
            hashes.put(ShardedCheckpoint.INDEX_FILE, Hash.of(target));
        }
        return hashes;
    }

    private static void copy(Path file, Path target) throws IOException {
        AtomicFile.write(target, out -> {
            try (FileChannel in = FileChannel.open(file, StandardOpenOption.READ)) {
                long size = in.size();
                for (long at = 0; at < size; ) {
                    long count = in.transferTo(at, size - at, out);
                    if (count <= 0) {
                        throw new IOException(file + ": ended while it was copied; do not change a file that is open");
                    }
                    at += count;
                }
            }
        });
    }

    /** The configuration with changed fields, in the part that has them. */
    private static Map<String, @Nullable Object> changed(
            Map<String, @Nullable Object> config, Map<String, Object> changes) {
        Map<String, @Nullable Object> result = new LinkedHashMap<>(config);
        changes.forEach((key, value) -> {
            boolean nested = result.get("text_config") instanceof Map<?, ?> text && text.containsKey(key);
            if (nested) {
                Map<Object, @Nullable Object> text = new LinkedHashMap<>((Map<?, ?>) result.get("text_config"));
                text.put(key, value);
                result.put("text_config", text);
            }
            if (!nested || result.containsKey(key)) {
                result.put(key, value);
            }
        });
        return result;
    }

    /** The index of the result: the checkpoint's own bytes if they are right for it, or null if there is one file. */
    private static byte @Nullable [] index(MergeSession session) throws IOException {
        List<OutputFile> files = session.files();
        Path folder = session.base().folder();
        Path old = folder == null ? null : folder.resolve(ShardedCheckpoint.INDEX_FILE);
        boolean had = old != null && Files.exists(old) && !Files.exists(folder.resolve(ShardedCheckpoint.SINGLE_FILE));
        boolean single = files.size() == 1 && files.get(0).name().equals(ShardedCheckpoint.SINGLE_FILE);
        if (single || files.size() == 1 && !had) {
            return null;
        }
        Map<String, Object> weightMap = new TreeMap<>();
        long total = 0;
        for (OutputFile file : files) {
            file.tensors().forEach(tensor -> weightMap.put(tensor.info().name(), file.name()));
            total += file.dataBytes();
        }
        if (had && old != null) {
            Map<String, @Nullable Object> json = StrictJson.readObject(old, 100_000_000);
            boolean right = weightMap.equals(json.get("weight_map"))
                    && json.get("metadata") instanceof Map<?, ?> metadata
                    && Long.valueOf(total).equals(metadata.get("total_size"));
            if (right) {
                return Files.readAllBytes(old);
            }
        }
        Map<String, Object> index = new LinkedHashMap<>();
        index.put("metadata", Map.of("total_size", total));
        index.put("weight_map", weightMap);
        return Json.text(index).getBytes(java.nio.charset.StandardCharsets.UTF_8);
    }

    /** The names of files in the checkpoint's folder that hold other weights and stay behind. */
    static List<String> leftBehind(BaseCheckpoint base) throws IOException {
        Path folder = base.folder();
        if (folder == null) {
            return List.of();
        }
        List<String> own = new ArrayList<>(List.of(ShardedCheckpoint.INDEX_FILE));
        base.files().forEach(file -> own.add(name(file.path())));
        try (Stream<Path> files = Files.list(folder)) {
            return files.map(CarriedFiles::name)
                    .filter(file -> WEIGHTS.matcher(file).matches() && !own.contains(file))
                    .sorted()
                    .toList();
        }
    }
}
