package org.lora4j.format;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.OptionalLong;
import org.lora4j.format.ZipDirectory.Place;

/**
 * An open file of {@code torch.save} that holds one flat dict of tensors, such as PEFT's {@code adapter_model.bin}. Both
 * forms are read: the zip of PyTorch 1.6 and later, and the bare pickle of earlier ones. No code of the file is run: see
 * {@link Unpickler} for what it may name.
 *
 * <p>Everything is checked when the file is opened, and nothing but names and shapes is in memory then. The places in
 * {@link TensorInfo} are those the tensors would have one after another.
 */
public final class PyTorchFile implements TensorFile {
    /**
     * The bytes of all tensors together may be this often the bytes of the file. More than the file's own are needed by
     * tensors that share memory.
     */
    static final int MAX_SHARING = 16;

    private final Path path;
    private final FileChannel channel;
    private final Map<String, StoredTensor> stored = new LinkedHashMap<>();
    private final Map<String, TensorInfo> tensors = new LinkedHashMap<>();

    private PyTorchFile(Path path, FileChannel channel) {
        this.path = path;
        this.channel = channel;
    }

    /** Whether a file begins as those of {@code torch.save} do. Its name must not end in {@code .safetensors}. */
    public static boolean recognises(Path path) throws IOException {
        Path name = path.getFileName();
        if (name == null || name.toString().endsWith(".safetensors") || !Files.isRegularFile(path)) {
            return false;
        }
        try (FileChannel channel = FileChannel.open(path, StandardOpenOption.READ)) {
            ByteBuffer start = ByteBuffer.allocate(TorchContainer.LEGACY_START.length);
            while (start.hasRemaining() && channel.read(start) >= 0) {}
            return TorchContainer.isZip(start.flip()) || TorchContainer.isPickle(start, name.toString());
        }
    }

    /**
     * Opens a file and checks all of it but the values of its tensors.
     *
     * @throws FormatException if it is not a dict of tensors in one of the two forms, naming what it has instead
     */
    public static PyTorchFile open(Path path) throws IOException {
        FileChannel channel = FileChannel.open(path, StandardOpenOption.READ);
        try {
            PyTorchFile file = new PyTorchFile(path, channel);
            file.take(TorchContainer.read(channel, path.toString()));
            return file;
        } catch (Throwable failure) {
            channel.close();
            throw failure;
        }
    }

    private void take(TorchContainer content) throws IOException {
        if (!(content.root() instanceof Map<?, ?> dict)) {
            throw wrong("holds " + Unpickler.describe(content.root()) + " instead of a dict of tensors");
        }
        long budget = Math.multiplyExact(channel.size(), (long) MAX_SHARING);
        long end = 0;
        for (Map.Entry<?, ?> entry : dict.entrySet()) {
            String name = (String) entry.getKey();
            if (!(entry.getValue() instanceof StridedTensor tensor)) {
                throw wrong("holds " + Unpickler.describe(entry.getValue()) + " under \""
                        + SafetensorsHeader.shorten(name) + "\" instead of a tensor; save only the dict of tensors");
            }
            Place place = content.places().get(tensor.storage().key());
            if (place == null) {
                throw wrong("has no data for the tensor \"" + SafetensorsHeader.shorten(name) + "\"");
            }
            long bytes = SafetensorsHeader.bytes(tensor.dtype(), tensor.size());
            if (bytes > budget - end) {
                throw wrong("its tensors have more than " + MAX_SHARING + " times the bytes of the file; expanded "
                        + "tensors must be made contiguous first");
            }
            tensors.put(name, new TensorInfo(name, tensor.dtype(), tensor.size(), end, end + bytes));
            stored.put(name, new StoredTensor(channel, path, tensor, place, content.bigEndian()));
            end += bytes;
        }
    }

    private FormatException wrong(String what) {
        return new FormatException(path + ": " + what + "; convert it to safetensors in Python");
    }

    @Override
    public Path path() {
        return path;
    }

    @Override
    public Map<String, String> metadata() {
        return Map.of();
    }

    /** The tensors by name, in the order of the dict. */
    @Override
    public Map<String, TensorInfo> tensors() {
        return Collections.unmodifiableMap(tensors);
    }

    @Override
    public OptionalLong place(String name) {
        return stored(name).place();
    }

    @Override
    public ByteBuffer read(String name) throws IOException {
        long bytes = tensor(name).bytes();
        if (bytes > Integer.MAX_VALUE - 8) {
            throw new IllegalArgumentException(path + ": tensor \"" + name + "\" has " + bytes
                    + " bytes, more than one buffer holds; use source()");
        }
        ByteBuffer buffer = ByteBuffer.allocate((int) bytes);
        stored(name).writeTo(new ByteBufferChannel(buffer));
        return buffer.flip().order(ByteOrder.LITTLE_ENDIAN);
    }

    @Override
    public TensorSource source(String name) {
        return stored(name)::writeTo;
    }

    private StoredTensor stored(String name) {
        tensor(name);
        return java.util.Objects.requireNonNull(stored.get(name));
    }

    static void readFully(FileChannel channel, String file, ByteBuffer target, long position) throws IOException {
        long at = position;
        while (target.hasRemaining()) {
            int count = channel.read(target, at);
            if (count < 0) {
                throw new FormatException(
                        file + ": ended at byte " + at + " while it was read; do not change a file that is open");
            }
            at += count;
        }
    }

    @Override
    public void close() throws IOException {
        channel.close();
    }
}
