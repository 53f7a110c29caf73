package org.lora4j.merge;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.DType;
import org.lora4j.format.SafetensorsFile;
import org.lora4j.format.SafetensorsLayout;
import org.lora4j.format.ShardedCheckpoint;
import org.lora4j.format.ShardedCheckpoint.Location;
import org.lora4j.format.TensorInfo;

/**
 * A safetensors file of the result, laid out before a byte of it is written.
 *
 * @param name its name in the folder
 * @param header the bytes before the data
 * @param tensors in the order of their data
 */
record OutputFile(String name, byte[] header, List<Tensor> tensors) {
    /**
     * A tensor of the result.
     *
     * @param info name, type, shape and place in the file
     * @param source the tensor of the checkpoint it starts as, or null
     * @param edit what changes it, or null
     */
    record Tensor(
            TensorInfo info,
            @Nullable Location source,
            @Nullable TensorEdit edit) {
        /** Whether the bytes are those of the source. */
        boolean isCopy() {
            return edit == null && source != null && source.info().dtype() == info.dtype();
        }
    }

    long bytes() {
        return header.length + dataBytes();
    }

    long dataBytes() {
        return tensors.isEmpty() ? 0 : tensors.get(tensors.size() - 1).info().end();
    }

    /** The files of a merged checkpoint: those of the original, or new shards if a size for them is given. */
    static List<OutputFile> layout(BaseCheckpoint base, Map<String, TensorEdit> edits, MergeOptions options)
            throws IOException {
        Map<SafetensorsFile, List<Tensor>> byFile = new LinkedHashMap<>();
        base.files().forEach(file -> byFile.put(file, new ArrayList<>()));
        base.tensors()
                .forEach((name, location) ->
                        wanted(byFile, location.file()).add(tensor(location, edits.get(name), options.dtype())));
        SafetensorsFile last = base.files().get(base.files().size() - 1);
        for (TensorEdit edit : edits.values()) {
            if (edit.base == null) {
                SafetensorsFile home = edit.copyOf == null ? last : edit.copyOf.file();
                DType dtype = target(edit.dtype(), options.dtype());
                TensorInfo info = new TensorInfo(edit.name, dtype, edit.shape(), 0, 0);
                wanted(byFile, home).add(new Tensor(info, edit.copyOf, edit));
            }
        }
        List<OutputFile> files = new ArrayList<>();
        if (options.maxShardBytes() > 0) {
            return shards(byFile, options.maxShardBytes());
        }
        for (Map.Entry<SafetensorsFile, List<Tensor>> entry : byFile.entrySet()) {
            SafetensorsFile file = entry.getKey();
            String name = file.path().getFileName().toString();
            boolean same = entry.getValue().stream().allMatch(OutputFile::keepsPlace);
            files.add(
                    same
                            ? new OutputFile(name, headerOf(file), entry.getValue())
                            : placed(name, file, entry.getValue()));
        }
        return files;
    }

    private static List<Tensor> wanted(Map<SafetensorsFile, List<Tensor>> byFile, SafetensorsFile file) {
        return byFile.computeIfAbsent(file, f -> new ArrayList<>());
    }

    private static Tensor tensor(Location location, @Nullable TensorEdit edit, @Nullable DType dtype) {
        TensorInfo old = location.info();
        long[] shape = edit == null ? old.shape() : edit.shape();
        TensorInfo info = new TensorInfo(old.name(), target(old.dtype(), dtype), shape, old.begin(), old.end());
        return new Tensor(info, edit != null && edit.copyOf != null ? edit.copyOf : location, edit);
    }

    private static DType target(DType dtype, @Nullable DType wanted) {
        return wanted != null && Numbers.isFloat(dtype) ? wanted : dtype;
    }

    /** Whether a tensor has in the result the type and shape it has in the checkpoint. */
    private static boolean keepsPlace(Tensor tensor) {
        return tensor.edit() != null && tensor.edit().base == null
                ? false
                : tensor.source() != null
                        && tensor.source().info().name().equals(tensor.info().name())
                        && tensor.source().info().equals(tensor.info());
    }

    /** The bytes before the data of a file. */
    static byte[] headerOf(SafetensorsFile file) throws IOException {
        ByteBuffer header = ByteBuffer.allocate((int) file.dataOffset());
        try (FileChannel channel = FileChannel.open(file.path(), StandardOpenOption.READ)) {
            while (header.hasRemaining()) {
                if (channel.read(header) < 0) {
                    throw new IOException(file.path() + ": ended in its header; do not change a file that is open");
                }
            }
        }
        return header.array();
    }

    private static OutputFile placed(String name, SafetensorsFile like, List<Tensor> tensors) {
        List<SafetensorsLayout.Entry> entries = new ArrayList<>();
        Map<String, Tensor> byName = new LinkedHashMap<>();
        for (Tensor tensor : tensors) {
            TensorInfo info = tensor.info();
            entries.add(new SafetensorsLayout.Entry(info.name(), info.dtype(), info.shape()));
            byName.put(info.name(), tensor);
        }
        SafetensorsLayout layout = SafetensorsLayout.of(like.metadata(), entries);
        List<Tensor> placed = new ArrayList<>();
        layout.tensors().forEach((tensor, info) -> {
            Tensor old = java.util.Objects.requireNonNull(byName.get(tensor));
            placed.add(new Tensor(info, old.source(), old.edit()));
        });
        return new OutputFile(name, layout.header(), placed);
    }

    private static List<OutputFile> shards(Map<SafetensorsFile, List<Tensor>> byFile, long most) {
        List<List<Tensor>> shards = new ArrayList<>();
        List<SafetensorsFile> like = new ArrayList<>();
        long size = 0;
        for (Map.Entry<SafetensorsFile, List<Tensor>> entry : byFile.entrySet()) {
            for (Tensor tensor : entry.getValue()) {
                TensorInfo info = tensor.info();
                long bytes = Numbers.count(info.shape()) * info.dtype().bits() / 8;
                if (shards.isEmpty() || size + bytes > most) {
                    shards.add(new ArrayList<>());
                    like.add(entry.getKey());
                    size = 0;
                }
                shards.get(shards.size() - 1).add(tensor);
                size += bytes;
            }
        }
        List<OutputFile> files = new ArrayList<>();
        for (int i = 0; i < shards.size(); i++) {
            String name = shards.size() == 1
                    ? ShardedCheckpoint.SINGLE_FILE
                    : String.format(Locale.ROOT, "model-%05d-of-%05d.safetensors", i + 1, shards.size());
            files.add(placed(name, like.get(i), shards.get(i)));
        }
        return files;
    }
}
