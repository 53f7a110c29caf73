package org.lora4j.format;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.channels.WritableByteChannel;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;

/**
 * Writes one safetensors file; tensors are added first, their bytes are asked for one after another while writing.
 *
 * <p>Tensors are ordered by element type, widest first, and then by name, and the header is padded with spaces to eight
 * bytes: the file is byte for byte what the reference implementation writes for the same tensors and metadata, except
 * that several metadata entries keep the order they are given in.
 */
public final class SafetensorsWriter {
    private record Entry(String name, DType dtype, long[] shape, long bytes, TensorSource source) {}

    private final Map<String, String> metadata;
    private final Map<String, Entry> entries = new LinkedHashMap<>();

    /** A file with the given metadata; PEFT and transformers expect {@code format} to be {@code pt}. */
    public SafetensorsWriter(Map<String, String> metadata) {
        metadata.forEach((key, value) -> {
            if (!JsonText.isUnicode(key) || !JsonText.isUnicode(value)) {
                throw new IllegalArgumentException(
                        "metadata \"" + key + "\" holds half a surrogate pair; pass valid Unicode");
            }
        });
        this.metadata = new LinkedHashMap<>(metadata);
    }

    /**
     * Adds a tensor.
     *
     * @throws IllegalArgumentException naming the tensor, if its name is taken or not allowed or its size impossible
     */
    public SafetensorsWriter add(String name, DType dtype, long[] shape, TensorSource source) {
        if (name.equals(SafetensorsHeader.METADATA) || !JsonText.isUnicode(name)) {
            throw refuse(name, "this name is not allowed; rename it");
        }
        if (shape.length > SafetensorsHeader.MAX_RANK) {
            throw refuse(name, "has " + shape.length + " dimensions; at most 64 are allowed");
        }
        for (long size : shape) {
            if (size < 0) {
                throw refuse(name, "has a negative size; check the shape");
            }
        }
        long bytes;
        try {
            bytes = SafetensorsHeader.bytes(dtype, shape);
        } catch (ArithmeticException e) {
            throw refuse(name, "has a size beyond 63 bits; check the shape");
        }
        if (bytes < 0) {
            throw refuse(name, "has " + dtype + " elements that do not fill whole bytes; check the shape");
        }
        if (entries.putIfAbsent(name, new Entry(name, dtype, shape.clone(), bytes, source)) != null) {
            throw refuse(name, "was added before; give each tensor its own name");
        }
        return this;
    }

    private static IllegalArgumentException refuse(String name, String what) {
        return new IllegalArgumentException("tensor \"" + SafetensorsHeader.shorten(name) + "\": " + what);
    }

    /** Bytes of all tensors added so far. */
    public long dataBytes() {
        return entries.values().stream().mapToLong(Entry::bytes).reduce(0, Math::addExact);
    }

    /**
     * Writes the file, replacing one that exists in a single step; see {@link AtomicFile}.
     *
     * @throws IOException if writing fails or a source supplies another number of bytes than its tensor has; the target
     *     is then as it was
     */
    public void write(Path target) throws IOException {
        List<SafetensorsLayout.Entry> wanted = new ArrayList<>();
        entries.values()
                .forEach(entry -> wanted.add(new SafetensorsLayout.Entry(entry.name(), entry.dtype(), entry.shape())));
        SafetensorsLayout layout = SafetensorsLayout.of(metadata, wanted);
        List<Entry> ordered = layout.tensors().keySet().stream()
                .map(name -> Objects.requireNonNull(entries.get(name)))
                .toList();
        AtomicFile.write(target, out -> {
            writeFully(out, ByteBuffer.wrap(layout.header()));
            for (Entry entry : ordered) {
                Counted counted = new Counted(out, entry);
                entry.source().writeTo(counted);
                counted.finish();
            }
        });
    }

    static void writeFully(WritableByteChannel out, ByteBuffer bytes) throws IOException {
        while (bytes.hasRemaining()) {
            out.write(bytes);
        }
    }

    /** Passes on exactly the bytes of one tensor. */
    private static final class Counted implements WritableByteChannel {
        private final FileChannel out;
        private final Entry entry;
        private long left;

        Counted(FileChannel out, Entry entry) {
            this.out = out;
            this.entry = entry;
            this.left = entry.bytes();
        }

        @Override
        public int write(ByteBuffer bytes) throws IOException {
            int count = bytes.remaining();
            if (count > left) {
                throw new IOException("tensor \"" + entry.name() + "\": its source supplies more than the "
                        + entry.bytes() + " bytes of its shape and type; check the source");
            }
            writeFully(out, bytes);
            left -= count;
            return count;
        }

        void finish() throws IOException {
            if (left > 0) {
                throw new IOException("tensor \"" + entry.name() + "\": its source supplies " + left
                        + " bytes less than the " + entry.bytes() + " of its shape and type; check the source");
            }
        }

        @Override
        public boolean isOpen() {
            return out.isOpen();
        }

        @Override
        public void close() {
            // The file belongs to the writer, not to a tensor's source.
        }
    }
}
