package org.lora4j.format;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;

/** Writes GGUF of version 3: tensors are added first, their bytes are asked for one after another while writing. */
final class GgufWriter {
    private record Entry(String name, DType dtype, long[] shape, TensorSource source) {
        long bytes() {
            return SafetensorsHeader.bytes(dtype, shape);
        }
    }

    private final Map<String, Object> values;
    private final List<Entry> entries = new ArrayList<>();

    /** @param values strings, and Float for numbers */
    GgufWriter(Map<String, Object> values) {
        this.values = values;
    }

    /** Adds a tensor of F32, F16, BF16 or F64, its shape in row-major order. */
    void add(String name, DType dtype, long[] shape, TensorSource source) {
        entries.add(new Entry(name, dtype, shape.clone(), source));
    }

    void write(Path file) throws IOException {
        Bytes header = new Bytes();
        header.number(GgufFile.MAGIC, 4).number(3, 4).number(entries.size(), 8).number(values.size(), 8);
        values.forEach((key, value) -> {
            header.string(key);
            if (value instanceof Float number) {
                header.number(6, 4).number(Float.floatToRawIntBits(number), 4);
            } else {
                header.number(8, 4).string(value.toString());
            }
        });
        long offset = 0;
        for (Entry entry : entries) {
            header.string(entry.name()).number(entry.shape().length, 4);
            for (int i = entry.shape().length - 1; i >= 0; i--) {
                header.number(entry.shape()[i], 8);
            }
            Integer type = GgufFile.number(entry.dtype());
            if (type == null) {
                throw new IllegalArgumentException(entry.name() + " is " + entry.dtype() + ", which GGUF lacks");
            }
            header.number(type, 4).number(offset, 8);
            offset = aligned(offset + entry.bytes());
        }
        header.pad();
        AtomicFile.write(file, out -> {
            SafetensorsWriter.writeFully(out, ByteBuffer.wrap(header.toByteArray()));
            for (Entry entry : entries) {
                long before = out.position();
                entry.source().writeTo(out);
                long written = out.position() - before;
                if (written != entry.bytes()) {
                    throw new IOException(entry.name() + ": its source gave " + written + " bytes, not " + entry.bytes()
                            + "; check the source");
                }
                SafetensorsWriter.writeFully(out, ByteBuffer.allocate((int) (aligned(written) - written)));
            }
        });
    }

    private static long aligned(long size) {
        return (size + GgufFile.DEFAULT_ALIGNMENT - 1) / GgufFile.DEFAULT_ALIGNMENT * GgufFile.DEFAULT_ALIGNMENT;
    }

    private static final class Bytes extends ByteArrayOutputStream {
        Bytes number(long value, int size) {
            byte[] bytes = ByteBuffer.allocate(8)
                    .order(ByteOrder.LITTLE_ENDIAN)
                    .putLong(value)
                    .array();
            write(bytes, 0, size);
            return this;
        }

        Bytes string(String text) {
            byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
            number(bytes.length, 8);
            write(bytes, 0, bytes.length);
            return this;
        }

        void pad() {
            while (size() % GgufFile.DEFAULT_ALIGNMENT != 0) {
                write(0);
            }
        }
    }
}
