package org.lora4j.format;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.Map;
import java.util.OptionalLong;
import org.lora4j.format.SafetensorsException.Defect;

/**
 * An open safetensors file: its header, checked in full before anything else is read, and its bytes.
 *
 * <p>Files and tensors may be larger than 2 GiB. Reading is safe from several threads. Closing the file leaves buffers
 * from {@link #map} valid.
 */
public final class SafetensorsFile implements TensorFile {
    private static final int LENGTH_BYTES = 8;

    private final Path path;
    private final FileChannel channel;
    private final SafetensorsHeader header;
    private final long dataOffset;

    private SafetensorsFile(Path path, FileChannel channel, SafetensorsHeader header, long dataOffset) {
        this.path = path;
        this.channel = channel;
        this.header = header;
        this.dataOffset = dataOffset;
    }

    /**
     * Opens a file and checks its header.
     *
     * @throws SafetensorsException with the defect, if the file is not exactly what the format demands
     */
    public static SafetensorsFile open(Path path) throws IOException {
        FileChannel channel = FileChannel.open(path, StandardOpenOption.READ);
        try {
            long size = channel.size();
            if (size < LENGTH_BYTES) {
                throw new SafetensorsException(
                        Defect.FILE_TOO_SHORT,
                        path + ": has " + size + " bytes, too few for a safetensors file; copy or download it again");
            }
            ByteBuffer length = ByteBuffer.allocate(LENGTH_BYTES).order(ByteOrder.LITTLE_ENDIAN);
            readFully(channel, path, length, 0);
            long headerBytes = length.flip().getLong();
            if (headerBytes < 0 || headerBytes > SafetensorsHeader.MAX_BYTES) {
                throw new SafetensorsException(
                        Defect.HEADER_TOO_LARGE,
                        path + ": the header claims " + Long.toUnsignedString(headerBytes) + " bytes, more than "
                                + SafetensorsHeader.MAX_BYTES + "; check that it is a safetensors file");
            }
            if (headerBytes > size - LENGTH_BYTES) {
                throw new SafetensorsException(
                        Defect.HEADER_TRUNCATED,
                        path + ": the header claims " + headerBytes + " bytes but only " + (size - LENGTH_BYTES)
                                + " follow; copy or download the file again");
            }
            byte[] json = new byte[(int) headerBytes];
            readFully(channel, path, ByteBuffer.wrap(json), LENGTH_BYTES);
            long dataOffset = LENGTH_BYTES + headerBytes;
            SafetensorsHeader header = SafetensorsHeader.parse(json, size - dataOffset, path.toString());
            return new SafetensorsFile(path, channel, header, dataOffset);
        } catch (Throwable failure) {
            channel.close();
            throw failure;
        }
    }

    @Override
    public Path path() {
        return path;
    }

    /** The strings of {@code __metadata__}, in the file's order. */
    @Override
    public Map<String, String> metadata() {
        return header.metadata();
    }

    /** The tensors by name, in the order of their data. */
    @Override
    public Map<String, TensorInfo> tensors() {
        return header.tensors();
    }

    /** Where the data begins in the file; add {@link TensorInfo#begin()} for the place of a tensor. */
    public long dataOffset() {
        return dataOffset;
    }

    @Override
    public OptionalLong place(String name) {
        return OptionalLong.of(dataOffset + tensor(name).begin());
    }

    @Override
    public TensorSource source(String name) {
        TensorInfo tensor = tensor(name);
        return out -> StoredTensor.copy(channel, path.toString(), dataOffset + tensor.begin(), tensor.bytes(), out);
    }

    /**
     * Fills a buffer from a tensor's bytes.
     *
     * @param from the first byte, counted from the tensor's own
     * @throws IllegalArgumentException if the tensor ends before the buffer is full
     */
    public void read(String name, long from, ByteBuffer target) throws IOException {
        TensorInfo tensor = tensor(name);
        if (from < 0 || from > tensor.bytes() || target.remaining() > tensor.bytes() - from) {
            throw new IllegalArgumentException(path + ": tensor \"" + name + "\" has " + tensor.bytes()
                    + " bytes; cannot read " + target.remaining() + " from byte " + from);
        }
        readFully(channel, path, target, dataOffset + tensor.begin() + from);
    }

    /**
     * All bytes of a tensor, little endian, ready to be read.
     *
     * @throws IllegalArgumentException if they are more than a buffer can hold
     */
    @Override
    public ByteBuffer read(String name) throws IOException {
        ByteBuffer buffer = ByteBuffer.allocate(bufferSize(name)).order(ByteOrder.LITTLE_ENDIAN);
        read(name, 0, buffer);
        return buffer.flip().order(ByteOrder.LITTLE_ENDIAN);
    }

    /**
     * The bytes of a tensor mapped into memory, read-only and little endian. Truncating the file while the mapping is
     * used makes the JVM fail; replacing it by renaming, as {@link AtomicFile} does, is safe.
     *
     * @throws IllegalArgumentException if the tensor is larger than a mapping can be
     */
    public ByteBuffer map(String name) throws IOException {
        int size = bufferSize(name);
        long offset = dataOffset + tensor(name).begin();
        return channel.map(FileChannel.MapMode.READ_ONLY, offset, size).order(ByteOrder.LITTLE_ENDIAN);
    }

    private int bufferSize(String name) {
        long bytes = tensor(name).bytes();
        if (bytes > Integer.MAX_VALUE - 8) {
            throw new IllegalArgumentException(path + ": tensor \"" + name + "\" has " + bytes
                    + " bytes, more than one buffer holds; read it in parts");
        }
        return (int) bytes;
    }

    private static void readFully(FileChannel channel, Path path, ByteBuffer target, long position) throws IOException {
        long at = position;
        while (target.hasRemaining()) {
            int count = channel.read(target, at);
            if (count < 0) {
                throw new SafetensorsException(
                        Defect.DATA_TRUNCATED,
                        path + ": ended at byte " + at + " while it was read; do not change a file that is open");
            }
            at += count;
        }
    }

    @Override
    public void close() throws IOException {
        channel.close();
    }
}
