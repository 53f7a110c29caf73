package org.lora4j.merge;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.zip.CRC32C;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.FormatException;
import org.lora4j.format.ShardedCheckpoint.Location;
import org.lora4j.format.StrictJson;

/**
 * The original bytes of what a merge in place overwrites, in a folder within the checkpoint. They are on disk before the
 * first byte is overwritten; while {@code undo.json} is there, the checkpoint may be half merged.
 */
final class Undo {
    private static final String FOLDER = ".lora4j-undo";
    private static final String JSON = "undo.json";
    private static final String BYTES = "undo.bin";
    private static final int CHUNK = 4 << 20;

    /** A place in a file of the checkpoint and its original bytes' hash. */
    private record Range(String file, long position, long bytes, long crc) {}

    private final Path checkpoint;

    Undo(Path checkpoint) {
        this.checkpoint = checkpoint;
    }

    private static Path folder(Path checkpoint) {
        Path home = Files.isDirectory(checkpoint)
                ? checkpoint
                : checkpoint.toAbsolutePath().getParent();
        return home == null ? Path.of(FOLDER) : home.resolve(FOLDER);
    }

    private static Path home(Path folder) {
        Path home = folder.toAbsolutePath().getParent();
        if (home == null) {
            throw new IllegalStateException("no folder around " + folder);
        }
        return home;
    }

    /** @throws FormatException if a merge into this checkpoint was interrupted */
    static void refuse(Path checkpoint) throws IOException {
        if (new Undo(checkpoint).isThere()) {
            throw new FormatException(
                    checkpoint + ": a merge in place was interrupted and left it half merged; run the merge"
                            + " again with --in-place --resume, or take it back with --in-place --rollback");
        }
    }

    boolean isThere() {
        return Files.exists(folder(checkpoint).resolve(JSON));
    }

    /** Keeps the bytes of tensors that will be overwritten, and the manifest of an earlier merge. */
    void record(List<Location> tensors) throws IOException {
        Path folder = folder(checkpoint);
        Files.createDirectories(folder);
        Path manifest = home(folder).resolve(MergeManifest.FILE_NAME);
        Files.deleteIfExists(folder.resolve(MergeManifest.FILE_NAME));
        if (Files.exists(manifest)) {
            Json.write(folder.resolve(MergeManifest.FILE_NAME), Files.readAllBytes(manifest));
        }
        List<Object> ranges = new ArrayList<>();
        ByteBuffer chunk = ByteBuffer.allocateDirect(CHUNK);
        try (FileChannel out = FileChannel.open(
                folder.resolve(BYTES),
                StandardOpenOption.CREATE,
                StandardOpenOption.TRUNCATE_EXISTING,
                StandardOpenOption.WRITE)) {
            for (Location tensor : tensors) {
                CRC32C crc = new CRC32C();
                long bytes = tensor.info().bytes();
                for (long at = 0; at < bytes; at += chunk.limit()) {
                    chunk.clear().limit((int) Math.min(CHUNK, bytes - at));
                    tensor.file().read(tensor.info().name(), at, chunk);
                    crc.update(chunk.flip());
                    chunk.rewind();
                    while (chunk.hasRemaining()) {
                        out.write(chunk);
                    }
                }
                Map<String, Object> range = new LinkedHashMap<>();
                range.put("file", tensor.file().path().getFileName().toString());
                range.put("position", tensor.file().dataOffset() + tensor.info().begin());
                range.put("bytes", bytes);
                range.put("crc32c", crc.getValue());
                ranges.add(range);
            }
            out.force(true);
        }
        Json.write(folder.resolve(JSON), Map.of("ranges", ranges, "crc32c", crc(ranges)));
    }

    /** Puts the original bytes back, whatever became of them. */
    void rollBack() throws IOException {
        Path folder = folder(checkpoint);
        Path json = folder.resolve(JSON);
        List<Range> ranges = ranges(json);
        Path home = home(folder);
        try (FileChannel in = FileChannel.open(folder.resolve(BYTES), StandardOpenOption.READ)) {
            long from = 0;
            for (Range range : ranges) {
                check(in, from, range, folder);
                from += range.bytes();
            }
            from = 0;
            for (Range range : ranges) {
                try (FileChannel out = FileChannel.open(home.resolve(range.file()), StandardOpenOption.WRITE)) {
                    if (out.size() < range.position() + range.bytes()) {
                        throw new FormatException(
                                home.resolve(range.file()) + ": is shorter than it was; get it again");
                    }
                    out.position(range.position());
                    long end = from + range.bytes();
                    while (from < end) {
                        from += in.transferTo(from, end - from, out);
                    }
                    out.force(true);
                }
            }
        }
        Path manifest = home.resolve(MergeManifest.FILE_NAME);
        Path earlier = folder.resolve(MergeManifest.FILE_NAME);
        if (Files.exists(earlier)) {
            Json.write(manifest, Files.readAllBytes(earlier));
        } else {
            Files.deleteIfExists(manifest);
        }
        forget();
    }

    private static void check(FileChannel in, long from, Range range, Path folder) throws IOException {
        CRC32C crc = new CRC32C();
        ByteBuffer chunk = ByteBuffer.allocateDirect(CHUNK);
        for (long at = 0; at < range.bytes(); at += chunk.limit()) {
            chunk.clear().limit((int) Math.min(CHUNK, range.bytes() - at));
            FileBytes.readFully(in, chunk, from + at, folder.resolve(BYTES));
            crc.update(chunk.flip());
        }
        if (crc.getValue() != range.crc()) {
            throw new FormatException(
                    folder.resolve(BYTES) + ": is damaged, so the merge cannot be taken back; nothing was"
                            + " changed now. Get the checkpoint again");
        }
    }

    private static long crc(Object ranges) {
        CRC32C crc = new CRC32C();
        crc.update(Json.line(ranges).getBytes(StandardCharsets.UTF_8));
        return crc.getValue();
    }

    private static List<Range> ranges(Path json) throws IOException {
        List<Range> ranges = new ArrayList<>();
        Map<String, @Nullable Object> read = StrictJson.readObject(json, 256 << 20);
        List<?> list = Json.list(read.get("ranges"), "ranges", json.toString());
        if (!Long.valueOf(crc(list)).equals(read.get("crc32c"))) {
            throw new FormatException(json + ": is damaged, so the merge cannot be taken back; nothing was changed now."
                    + " Get the checkpoint again");
        }
        for (Object entry : list) {
            if (entry instanceof Map<?, ?> map
                    && map.get("file") instanceof String file
                    && !file.contains("/")
                    && map.get("position") instanceof Long position
                    && map.get("bytes") instanceof Long bytes
                    && map.get("crc32c") instanceof Long crc) {
                ranges.add(new Range(file, position, bytes, crc));
            } else {
                throw new FormatException(json + ": an entry lacks file, position, bytes or crc32c; do not edit it");
            }
        }
        return ranges;
    }

    /** The checkpoint is whole: what was kept is not needed any more. */
    void forget() throws IOException {
        Path folder = folder(checkpoint);
        Files.deleteIfExists(folder.resolve(JSON));
        FolderSink.sync(folder);
        CheckpointMerge.delete(folder);
        // A process that died may have left the beginning of a manifest.
        CheckpointMerge.keepOnly(
                home(folder), name -> !(name.startsWith("." + MergeManifest.FILE_NAME + ".") && name.endsWith(".tmp")));
    }
}
