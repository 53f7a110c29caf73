package org.lora4j.format;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.MappedByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.channels.WritableByteChannel;
import java.nio.file.Path;
import java.util.OptionalLong;
import org.lora4j.format.ZipDirectory.Place;

/** A tensor and the place of its storage in an open file. */
final class StoredTensor {
    private static final int CHUNK_BYTES = 1 << 16;

    /** A multiple of every element size, so that no element lies in two windows. */
    private static final long WINDOW_BYTES = 1L << 30;

    private final FileChannel channel;
    private final Path path;
    private final StridedTensor tensor;
    private final Place storage;
    private final boolean swapped;

    StoredTensor(FileChannel channel, Path path, StridedTensor tensor, Place storage, boolean bigEndian) {
        this.channel = channel;
        this.path = path;
        this.tensor = tensor;
        this.storage = storage;
        this.swapped = bigEndian && tensor.elementBytes() > 1;
    }

    OptionalLong place() {
        boolean plain = tensor.contiguous() && !swapped;
        return plain
                ? OptionalLong.of(storage.begin() + tensor.offset() * tensor.elementBytes())
                : OptionalLong.empty();
    }

    void writeTo(WritableByteChannel out) throws IOException {
        long bytes = SafetensorsHeader.bytes(tensor.dtype(), tensor.size());
        if (bytes == 0) {
            return;
        }
        OptionalLong place = place();
        if (place.isPresent()) {
            copy(channel, path.toString(), place.getAsLong(), bytes, out);
        } else {
            gather(out);
        }
    }

    /** Copies bytes of a file as they are. */
    static void copy(FileChannel from, String file, long begin, long bytes, WritableByteChannel out)
            throws IOException {
        ByteBuffer chunk = ByteBuffer.allocate((int) Math.min(bytes, CHUNK_BYTES));
        for (long done = 0; done < bytes; done += chunk.limit()) {
            chunk.clear().limit((int) Math.min(chunk.capacity(), bytes - done));
            PyTorchFile.readFully(from, file, chunk, begin + done);
            SafetensorsWriter.writeFully(out, chunk.flip());
        }
    }

    private void gather(WritableByteChannel out) throws IOException {
        Windows windows = new Windows();
        ByteBuffer chunk = ByteBuffer.allocate(CHUNK_BYTES).order(ByteOrder.LITTLE_ENDIAN);
        long[] index = new long[tensor.size().length];
        long at = tensor.offset();
        boolean more = true;
        while (more) {
            if (chunk.remaining() < tensor.elementBytes()) {
                SafetensorsWriter.writeFully(out, chunk.flip());
                chunk.clear();
            }
            windows.element(at * tensor.elementBytes(), chunk);
            more = false;
            for (int d = index.length - 1; d >= 0 && !more; d--) {
                at += tensor.stride()[d];
                more = ++index[d] < tensor.size()[d];
                if (!more) {
                    at -= tensor.stride()[d] * index[d];
                    index[d] = 0;
                }
            }
        }
        SafetensorsWriter.writeFully(out, chunk.flip());
    }

    /** The storage mapped into memory, a window at a time as it is needed. */
    private final class Windows {
        private final MappedByteBuffer[] windows =
                new MappedByteBuffer[Math.toIntExact((storage.bytes() + WINDOW_BYTES - 1) / WINDOW_BYTES)];

        /** Appends an element; the two parts of a complex one are numbers of their own. */
        void element(long position, ByteBuffer target) throws IOException {
            int number = (int) (position / WINDOW_BYTES);
            int at = (int) (position % WINDOW_BYTES);
            ByteBuffer window = windows[number];
            if (window == null) {
                long begin = number * WINDOW_BYTES;
                long length = Math.min(WINDOW_BYTES, storage.bytes() - begin);
                windows[number] = channel.map(FileChannel.MapMode.READ_ONLY, storage.begin() + begin, length);
                windows[number].order(swapped ? ByteOrder.BIG_ENDIAN : ByteOrder.LITTLE_ENDIAN);
                window = windows[number];
            }
            switch (tensor.dtype()) {
                case C64 -> target.putInt(window.getInt(at)).putInt(window.getInt(at + 4));
                default -> {
                    switch (tensor.elementBytes()) {
                        case 1 -> target.put(window.get(at));
                        case 2 -> target.putShort(window.getShort(at));
                        case 4 -> target.putInt(window.getInt(at));
                        default -> target.putLong(window.getLong(at));
                    }
                }
            }
        }
    }
}
