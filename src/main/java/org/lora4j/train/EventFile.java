package org.lora4j.train;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.zip.CRC32C;

/**
 * A file of events that TensorBoard shows: records of the TFRecord format, each an {@code Event} message of protocol
 * buffers with a scalar.
 */
final class EventFile implements AutoCloseable {
    private final FileChannel out;

    /**
     * Begins a file.
     *
     * @param folder where TensorBoard looks for it; made if it is not there
     * @param host part of the name
     */
    EventFile(Path folder, long secondsSinceEpoch, String host) throws IOException {
        Files.createDirectories(folder);
        Path file = folder.resolve("events.out.tfevents." + secondsSinceEpoch + "." + host);
        out = FileChannel.open(file, StandardOpenOption.CREATE, StandardOpenOption.WRITE, StandardOpenOption.APPEND);
        Message event = new Message();
        event.fixed64(1, Double.doubleToRawLongBits(secondsSinceEpoch));
        event.bytes(3, "brain.Event:2".getBytes(StandardCharsets.UTF_8));
        write(event.toByteArray());
    }

    /** Adds a value of a curve. */
    void scalar(String tag, long step, double value, double secondsSinceEpoch) throws IOException {
        Message scalar = new Message();
        scalar.bytes(1, tag.getBytes(StandardCharsets.UTF_8));
        scalar.fixed32(2, Float.floatToRawIntBits((float) value));
        Message summary = new Message();
        summary.bytes(1, scalar.toByteArray());
        Message event = new Message();
        event.fixed64(1, Double.doubleToRawLongBits(secondsSinceEpoch));
        event.varint(2, step);
        event.bytes(5, summary.toByteArray());
        write(event.toByteArray());
    }

    private void write(byte[] data) throws IOException {
        ByteBuffer record = ByteBuffer.allocate(data.length + 16).order(ByteOrder.LITTLE_ENDIAN);
        record.putLong(data.length);
        record.putInt(masked(record.array(), 0, 8));
        record.put(data);
        record.putInt(masked(data, 0, data.length));
        record.flip();
        while (record.hasRemaining()) {
            out.write(record);
        }
    }

    /** TFRecord's rotated and shifted CRC-32C. */
    static int masked(byte[] data, int from, int length) {
        CRC32C crc = new CRC32C();
        crc.update(data, from, length);
        int value = (int) crc.getValue();
        return ((value >>> 15) | (value << 17)) + 0xa282ead8;
    }

    /** The few field types an event needs. */
    private static final class Message extends ByteArrayOutputStream {
        void varint(int field, long value) {
            raw((long) field << 3);
            raw(value);
        }

        void fixed64(int field, long bits) {
            raw((long) field << 3 | 1);
            for (int shift = 0; shift < 64; shift += 8) {
                write((int) (bits >>> shift));
            }
        }

        void fixed32(int field, int bits) {
            raw((long) field << 3 | 5);
            for (int shift = 0; shift < 32; shift += 8) {
                write(bits >>> shift);
            }
        }

        void bytes(int field, byte[] value) {
            raw((long) field << 3 | 2);
            raw(value.length);
            writeBytes(value);
        }

        private void raw(long value) {
            long rest = value;
            while ((rest & ~0x7fL) != 0) {
                write((int) (rest & 0x7f | 0x80));
                rest >>>= 7;
            }
            write((int) rest);
        }
    }

    @Override
    public void close() throws IOException {
        out.close();
    }
}
