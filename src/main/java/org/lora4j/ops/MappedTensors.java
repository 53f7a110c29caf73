package org.lora4j.ops;

import java.io.IOException;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.bytedeco.pytorch.BoolOptional;
import org.bytedeco.pytorch.LongOptional;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.format.SafetensorsFile;
import org.lora4j.format.ShardedCheckpoint;
import org.lora4j.format.TensorInfo;

/**
 * The tensors of a safetensors file or checkpoint, mapped into memory.
 *
 * <p>A tensor from {@link #tensor} shares the mapped pages: nothing is read until it is used. The mapping is private, so
 * writing into such a tensor changes the process's copy of a page and never the file. The mapping lives as long as any
 * tensor made from it, also after {@link #close()}. Replacing the file by renaming, as {@link TensorFiles#write} does,
 * is safe meanwhile; truncating it makes the process fail.
 */
public final class MappedTensors implements AutoCloseable {
    /** One mapped file: all its bytes as a tensor, and where its data begins. */
    private record Mapping(Tensor bytes, long dataOffset) {}

    private record Entry(Mapping mapping, TensorInfo info) {}

    private final Map<String, Entry> entries = new LinkedHashMap<>();
    private final List<Mapping> mappings = new ArrayList<>();
    private final Map<String, String> metadata = new LinkedHashMap<>();

    MappedTensors(ShardedCheckpoint checkpoint) throws IOException {
        try {
            for (SafetensorsFile file : checkpoint.files()) {
                Mapping mapping = new Mapping(map(file), file.dataOffset());
                mappings.add(mapping);
                file.tensors().forEach((name, info) -> entries.put(name, new Entry(mapping, info)));
                file.metadata().forEach(metadata::putIfAbsent);
            }
        } catch (Throwable failure) {
            close();
            throw failure;
        }
    }

    private static Tensor map(SafetensorsFile file) throws IOException {
        long size = java.nio.file.Files.size(file.path());
        try (BoolOptional shared = new BoolOptional(false);
                LongOptional length = new LongOptional(size);
                TensorOptions bytes = new TensorOptions(ScalarType.Byte)) {
            return Tensors.keep(torch.from_file(file.path().toString(), shared, length, bytes));
        } catch (RuntimeException e) {
            throw new IOException(file.path() + ": LibTorch could not map it; check that it can be read: " + e, e);
        }
    }

    /** The names, in the order of the data. */
    public Set<String> names() {
        return Collections.unmodifiableSet(entries.keySet());
    }

    /** The metadata of the file; of several files the first that has a key gives its value. */
    public Map<String, String> metadata() {
        return Collections.unmodifiableMap(metadata);
    }

    /**
     * Type and shape of a tensor.
     *
     * @throws IllegalArgumentException if there is none of this name
     */
    public TensorInfo info(String name) {
        return entry(name).info();
    }

    /**
     * A tensor on the CPU. It shares the mapped memory unless its place in the file is not aligned to its element type,
     * in which case it is a copy. The caller closes the handle.
     *
     * @throws IllegalArgumentException if there is none of this name, or LibTorch lacks its element type
     */
    public Tensor tensor(String name) {
        Entry entry = entry(name);
        TensorInfo info = entry.info();
        ScalarType type;
        long[] shape;
        try {
            type = DTypes.libTorch(info.dtype());
            shape = DTypes.libTorchShape(info.dtype(), info.shape());
        } catch (IllegalArgumentException e) {
            throw new IllegalArgumentException("tensor \"" + name + "\": " + e.getMessage(), e);
        }
        if (info.bytes() == 0) {
            try (TensorOptions options = new TensorOptions(type)) {
                return torch.empty(shape, options, null);
            }
        }
        long offset = entry.mapping().dataOffset() + info.begin();
        boolean aligned = offset % Math.max(1, info.dtype().bits() / 8) == 0;
        try (Tensor part = entry.mapping().bytes().narrow(0, offset, info.bytes());
                Tensor bytes = aligned ? new Tensor(part) : part.clone();
                Tensor elements = bytes.view(type)) {
            return elements.view(shape);
        }
    }

    private Entry entry(String name) {
        Entry entry = entries.get(name);
        if (entry == null) {
            throw new IllegalArgumentException(
                    "there is no tensor \"" + name + "\" among " + entries.size() + "; see names()");
        }
        return entry;
    }

    /** Gives up this object's hold on the mapping; tensors made from it stay valid. */
    @Override
    public void close() {
        entries.clear();
        mappings.forEach(mapping -> mapping.bytes().close());
        mappings.clear();
    }
}
