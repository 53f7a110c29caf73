package org.lora4j.format;

import java.io.ByteArrayOutputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;

/** Writes zip files without compression, right or wrong: every field of a record can be changed before it is written. */
final class StoredZip {
    static final class Record {
        final String name;
        final byte[] data;
        String localName;
        int method;
        int flags;
        Long header;
        long bytes;
        long stored;

        Record(String name, byte[] data) {
            this.name = name;
            this.localName = name;
            this.data = data;
            this.bytes = data.length;
            this.stored = data.length;
        }
    }

    final List<Record> records = new ArrayList<>();
    /** Whether sizes and places are written as zip64 has them. */
    boolean wide;

    int extraCount;
    byte[] before = {};

    Record add(String name, byte[] data) {
        Record entry = new Record(name, data);
        records.add(entry);
        return entry;
    }

    byte[] write() {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        out.writeBytes(before);
        List<Long> headers = new ArrayList<>();
        for (Record entry : records) {
            headers.add((long) out.size());
            byte[] name = latin(entry.localName);
            ByteBuffer local = little(30 + name.length);
            local.putInt(0x04034b50).putShort((short) 20).putShort((short) entry.flags);
            local.putShort((short) entry.method).position(26);
            local.putShort((short) name.length).position(30);
            out.writeBytes(local.put(name).array());
            out.writeBytes(entry.data);
        }
        long directory = out.size();
        for (int i = 0; i < records.size(); i++) {
            Record entry = records.get(i);
            byte[] name = latin(entry.name);
            long header = entry.header != null ? entry.header : headers.get(i);
            ByteBuffer central = little(46 + name.length + (wide ? 28 : 0));
            central.putInt(0x02014b50).putInt(0).putShort((short) entry.flags).putShort((short) entry.method);
            central.position(20);
            central.putInt(wide ? -1 : (int) entry.stored).putInt(wide ? -1 : (int) entry.bytes);
            central.putShort((short) name.length).putShort((short) (wide ? 28 : 0));
            central.position(42);
            central.putInt(wide ? -1 : (int) header).put(name);
            if (wide) {
                central.putShort((short) 1).putShort((short) 24);
                central.putLong(entry.bytes).putLong(entry.stored).putLong(header);
            }
            out.writeBytes(central.array());
        }
        long end = out.size();
        int count = records.size() + extraCount;
        if (wide) {
            ByteBuffer end64 = little(76);
            end64.putInt(0x06064b50).putLong(44).position(24);
            end64.putLong(count).putLong(count).putLong(end - directory).putLong(directory);
            end64.putInt(0x07064b50).putInt(0).putLong(end).putInt(1);
            out.writeBytes(end64.array());
        }
        ByteBuffer tail = little(22);
        tail.putInt(0x06054b50).putInt(0);
        tail.putShort((short) (wide ? -1 : count)).putShort((short) (wide ? -1 : count));
        tail.putInt(wide ? -1 : (int) (end - directory)).putInt(wide ? -1 : (int) directory);
        out.writeBytes(tail.array());
        return out.toByteArray();
    }

    private static byte[] latin(String text) {
        return text.getBytes(StandardCharsets.ISO_8859_1);
    }

    private static ByteBuffer little(int bytes) {
        return ByteBuffer.allocate(bytes).order(ByteOrder.LITTLE_ENDIAN);
    }
}
