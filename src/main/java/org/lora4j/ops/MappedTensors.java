package org.lora4j.ops;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.channels.WritableByteChannel;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.OptionalLong;
import java.util.Set;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.pytorch.BoolOptional;
import org.bytedeco.pytorch.LongOptional;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.TensorFile;
import org.lora4j.format.TensorInfo;

/**
 * The tensors of a file or a checkpoint, mapped into memory.
 *
 * <p>A tensor from {@link #tensor} shares the mapped pages: nothing is read until it is used. The mapping is private, so
 * writing into such a tensor changes the process's copy of a page and never the file. The mapping lives as long as any
 * tensor made from it, also after {@link #close()}. Replacing the file by renaming, as {@link TensorFiles#write} does,
 * is safe meanwhile; truncating it makes the process fail.
 */
public final class MappedTensors implements AutoCloseable {
    /**
     * A tensor and its file.
     *
     * @param bytes all bytes of the file as a tensor
     * @param place where the tensor's bytes begin in it, if they lie there as LibTorch has them
     */
    private record Entry(TensorFile file, Tensor bytes, TensorInfo info, OptionalLong place) {}

    private final Map<String, Entry> entries = new LinkedHashMap<>();
    private final List<Tensor> mappings = new ArrayList<>();
    private final Map<String, String> metadata = new LinkedHashMap<>();
    private @Nullable TensorFile open;

    /** Maps files, which may be closed afterwards if all their tensors have places. */
    MappedTensors(Collection<? extends TensorFile> files) throws IOException {
        try {
            for (TensorFile file : files) {
                Tensor bytes = map(file);
                mappings.add(bytes);
                file.tensors()
                        .forEach((name, info) -> entries.put(name, new Entry(file, bytes, info, file.place(name))));
                file.metadata().forEach(metadata::putIfAbsent);
            }
        } catch (Throwable failure) {
            close();
            throw failure;
        }
    }

    /** Maps a file and closes it, now or together with the mapping. */
    static MappedTensors of(TensorFile file) throws IOException {
        MappedTensors tensors;
        try {
            tensors = new MappedTensors(List.of(file));
        } catch (Throwable failure) {
            file.close();
            throw failure;
        }
        if (tensors.entries.values().stream().allMatch(entry -> entry.place().isPresent())) {
            file.close();
        } else {
            tensors.open = file;
        }
        return tensors;
    }

    private static Tensor map(TensorFile file) throws IOException {
        long size = Files.size(file.path());
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
     * A tensor on the CPU. It shares the mapped memory; only where the file's bytes are not aligned, not in row-major order
     * or not little endian is it a copy. The caller closes the handle.
     *
     * @throws IllegalArgumentException if there is none of this name, or LibTorch lacks its element type
     * @throws UncheckedIOException if it must be copied and the file cannot be read any more
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
        if (entry.place().isEmpty()) {
            return copy(entry, type, shape);
        }
        long offset = entry.place().getAsLong();
        boolean aligned = offset % Math.max(1, info.dtype().bits() / 8) == 0;
        try (Tensor part = entry.bytes().narrow(0, offset, info.bytes());
                Tensor bytes = aligned ? new Tensor(part) : part.clone();
                Tensor elements = bytes.view(type)) {
            return elements.view(shape);
        }
    }

    private static Tensor copy(Entry entry, ScalarType type, long[] shape) {
        try (TensorOptions options = new TensorOptions(type)) {
            Tensor tensor = torch.empty(shape, options, null);
            try (Memory memory = new Memory(tensor.data_ptr())) {
                entry.file().source(entry.info().name()).writeTo(memory);
                return tensor;
            } catch (IOException e) {
                tensor.close();
                throw new UncheckedIOException(e);
            }
        }
    }

    /** Writes into the memory of a tensor, piece after piece. */
    private static final class Memory implements WritableByteChannel {
        private final Pointer start;
        private long written;

        Memory(Pointer start) {
            this.start = start;
        }

        @Override
        public int write(ByteBuffer bytes) {
            int count = bytes.remaining();
            new BytePointer(start)
                    .position(written)
                    .limit(written + count)
                    .asByteBuffer()
                    .put(bytes);
            written += count;
            return count;
        }

        @Override
        public boolean isOpen() {
            return true;
        }

        @Override
        public void close() {
            // The memory belongs to the tensor.
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
        mappings.forEach(Tensor::close);
        mappings.clear();
        if (open != null) {
            try {
                open.close();
            } catch (IOException e) {
                throw new UncheckedIOException(e);
            }
        }
    }
}
