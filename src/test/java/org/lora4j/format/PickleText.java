package org.lora4j.format;

import java.io.ByteArrayOutputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;

/** Writes pickles opcode by opcode, right or wrong. */
final class PickleText {
    private final ByteArrayOutputStream out = new ByteArrayOutputStream();

    PickleText() {
        raw(0x80, 2);
    }

    PickleText raw(int... bytes) {
        for (int b : bytes) {
            out.write(b);
        }
        return this;
    }

    PickleText op(char opcode) {
        return raw(opcode);
    }

    PickleText global(String module, String name) {
        op('c');
        out.writeBytes((module + "\n" + name + "\n").getBytes(StandardCharsets.UTF_8));
        return this;
    }

    PickleText string(String text) {
        byte[] utf8 = text.getBytes(StandardCharsets.UTF_8);
        op('X').int32(utf8.length);
        out.writeBytes(utf8);
        return this;
    }

    PickleText int32(int value) {
        out.writeBytes(ByteBuffer.allocate(4)
                .order(ByteOrder.LITTLE_ENDIAN)
                .putInt(value)
                .array());
        return this;
    }

    PickleText number(long value) {
        raw(0x8a, 8);
        out.writeBytes(ByteBuffer.allocate(8)
                .order(ByteOrder.LITTLE_ENDIAN)
                .putLong(value)
                .array());
        return this;
    }

    private PickleText numbers(long... values) {
        op('(');
        for (long value : values) {
            number(value);
        }
        return op('t');
    }

    PickleText storage(String type, String key, long elements) {
        op('(').string("storage").global("torch", type).string(key).string("cpu");
        return number(elements).op('t').op('Q');
    }

    /** A float tensor over the storage "0" of so many elements. */
    PickleText tensor(long elements, long offset, long[] size, long[] stride) {
        global("torch._utils", "_rebuild_tensor_v2").op('(').storage("FloatStorage", "0", elements);
        number(offset).numbers(size).numbers(stride).raw(0x89);
        return global("collections", "OrderedDict").op(')').op('R').op('t').op('R');
    }

    byte[] stop() {
        op('.');
        return out.toByteArray();
    }
}
