package org.lora4j.format;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/**
 * The records of a zip file in which nothing is compressed, as {@code torch.save} writes it, and their places. Files
 * beyond 4 GiB are read. Sizes are those of the central directory, which must end where the file's end begins, so that
 * the file cannot be two archives at once.
 */
final class ZipDirectory {
    /** Larger directories are refused. */
    private static final int MAX_BYTES = 64 << 20;

    private static final int END_BYTES = 22;
    private static final int END64_BYTES = 56;
    private static final int LOCATOR_BYTES = 20;
    private static final int ENTRY_BYTES = 46;
    private static final int LOCAL_BYTES = 30;
    private static final int MAX_COMMENT = 0xffff;
    private static final long NEEDS_64 = 0xffffffffL;

    /**
     * Where the bytes of a record lie.
     *
     * @param begin the first, counted from the start of the file
     * @param bytes how many
     */
    record Place(long begin, long bytes) {
        long end() {
            return begin + bytes;
        }
    }

    private record Entry(long header, long bytes, int method, int flags) {}

    private final FileChannel channel;
    private final String file;
    private final Map<String, Entry> entries = new LinkedHashMap<>();
    private long directory;

    private ZipDirectory(FileChannel channel, String file) {
        this.channel = channel;
        this.file = file;
    }

    static ZipDirectory read(FileChannel channel, String file) throws IOException {
        ZipDirectory zip = new ZipDirectory(channel, file);
        zip.read();
        return zip;
    }

    /** The names of the records in the order of the directory, one char to a byte. */
    List<String> names() {
        return new ArrayList<>(entries.keySet());
    }

    private void read() throws IOException {
        long size = channel.size();
        int tailBytes = (int) Math.min(size, END_BYTES + MAX_COMMENT);
        ByteBuffer tail = bytes(size - tailBytes, tailBytes);
        int at = tailBytes - END_BYTES;
        while (at >= 0
                && (tail.getInt(at) != 0x06054b50 || (tail.getShort(at + 20) & 0xffff) != tailBytes - at - END_BYTES)) {
            at--;
        }
        if (at < 0) {
            throw wrong("it has no directory at its end, as if it were cut short");
        }
        long end = size - tailBytes + at;
        long count = tail.getShort(at + 10) & 0xffff;
        long length = tail.getInt(at + 12) & NEEDS_64;
        directory = tail.getInt(at + 16) & NEEDS_64;
        ByteBuffer locator = end >= LOCATOR_BYTES + END64_BYTES ? bytes(end - LOCATOR_BYTES, LOCATOR_BYTES) : null;
        if (locator != null && locator.getInt(0) == 0x07064b50) {
            end -= LOCATOR_BYTES + END64_BYTES;
            ByteBuffer end64 = bytes(end, END64_BYTES);
            if (locator.getLong(8) != end || end64.getInt(0) != 0x06064b50) {
                throw wrong("the end of its directory is not where the file says");
            }
            count = end64.getLong(32);
            length = end64.getLong(40);
            directory = end64.getLong(48);
        }
        if (length < 0 || length > MAX_BYTES || directory < 0 || directory != end - length) {
            throw wrong("its directory of " + length + " bytes at byte " + directory + " does not end at " + end);
        }
        entries(bytes(directory, (int) length), count);
    }

    private void entries(ByteBuffer in, long count) throws FormatException {
        while (in.hasRemaining()) {
            int start = in.position();
            if (in.remaining() < ENTRY_BYTES || in.getInt(start) != 0x02014b50) {
                throw wrong("its directory is damaged");
            }
            int nameBytes = in.getShort(start + 28) & 0xffff;
            int extraBytes = in.getShort(start + 30) & 0xffff;
            int next = start + ENTRY_BYTES + nameBytes + extraBytes + (in.getShort(start + 32) & 0xffff);
            if (next > in.limit()) {
                throw wrong("its directory is damaged");
            }
            byte[] name = new byte[nameBytes];
            in.get(start + ENTRY_BYTES, name);
            ByteBuffer extra =
                    in.slice(start + ENTRY_BYTES + nameBytes, extraBytes).order(ByteOrder.LITTLE_ENDIAN);
            ByteBuffer extra64 = extra64(extra);
            long bytes = wide(in.getInt(start + 24), extra64);
            long stored = wide(in.getInt(start + 20), extra64);
            long header = wide(in.getInt(start + 42), extra64);
            int method = stored == bytes ? in.getShort(start + 10) & 0xffff : -1;
            String key = new String(name, StandardCharsets.ISO_8859_1);
            Entry entry = new Entry(header, bytes, method, in.getShort(start + 8));
            if (entries.putIfAbsent(key, entry) != null) {
                throw wrong("it has two records \"" + SafetensorsHeader.shorten(key) + "\"");
            }
            in.position(next);
        }
        if (entries.size() != count) {
            throw wrong("its directory has " + entries.size() + " records and claims " + count);
        }
    }

    /** The numbers of an entry that do not fit its fields. */
    private ByteBuffer extra64(ByteBuffer extra) {
        while (extra.remaining() >= 4) {
            int id = extra.getShort() & 0xffff;
            int length = Math.min(extra.getShort() & 0xffff, extra.remaining());
            if (id == 1) {
                return extra.slice(extra.position(), length).order(ByteOrder.LITTLE_ENDIAN);
            }
            extra.position(extra.position() + length);
        }
        return ByteBuffer.allocate(0);
    }

    private long wide(int field, ByteBuffer extra64) throws FormatException {
        long value = field & NEEDS_64;
        if (value == NEEDS_64) {
            if (extra64.remaining() < Long.BYTES) {
                throw wrong("its directory is damaged");
            }
            value = extra64.getLong();
        }
        return value;
    }

    /** Where a record lies, or null if there is none of this name. */
    @Nullable
    Place find(String name) throws IOException {
        Entry entry = entries.get(name);
        if (entry == null) {
            return null;
        }
        if (entry.method() != 0 || (entry.flags() & 1) != 0) {
            throw wrong("its record \"" + SafetensorsHeader.shorten(name)
                    + "\" is compressed or encrypted, which torch.save does not do");
        }
        long header = entry.header();
        if (header < 0 || header > directory - LOCAL_BYTES) {
            throw wrong("its record \"" + SafetensorsHeader.shorten(name) + "\" begins outside the file");
        }
        ByteBuffer local = bytes(header, LOCAL_BYTES);
        int nameBytes = local.getShort(26) & 0xffff;
        long begin = header + LOCAL_BYTES + nameBytes + (local.getShort(28) & 0xffff);
        if (entry.bytes() < 0 || begin > directory || entry.bytes() > directory - begin) {
            throw wrong("its record \"" + SafetensorsHeader.shorten(name) + "\" of " + entry.bytes() + " bytes at byte "
                    + begin + " ends outside the file");
        }
        ByteBuffer localName = bytes(header + LOCAL_BYTES, nameBytes);
        boolean same = local.getInt(0) == 0x04034b50
                && name.equals(StandardCharsets.ISO_8859_1.decode(localName).toString());
        if (!same) {
            throw wrong("its record \"" + SafetensorsHeader.shorten(name) + "\" has another name in its own header");
        }
        return new Place(begin, entry.bytes());
    }

    /** The bytes of a small record. */
    byte[] content(Place place) throws IOException {
        return bytes(place.begin(), (int) place.bytes()).array();
    }

    private ByteBuffer bytes(long from, int count) throws IOException {
        ByteBuffer buffer = ByteBuffer.allocate(count).order(ByteOrder.LITTLE_ENDIAN);
        PyTorchFile.readFully(channel, file, buffer, from);
        return buffer.flip().order(ByteOrder.LITTLE_ENDIAN);
    }

    private FormatException wrong(String what) {
        return new FormatException(
                file + ": is not a whole file of torch.save: " + what + "; copy the file or save it again");
    }
}
