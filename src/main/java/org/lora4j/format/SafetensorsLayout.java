package org.lora4j.format;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Collections;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Where tensors lie in a safetensors file, before any of their bytes are known: ordered by element type, widest first, and
 * then by name, as the reference implementation does.
 */
public final class SafetensorsLayout {
    /** A tensor that wants a place. */
    public record Entry(String name, DType dtype, long[] shape) {
        public Entry {
            shape = shape.clone();
        }

        @Override
        public long[] shape() {
            return shape.clone();
        }
    }

    private final Map<String, TensorInfo> tensors;
    private final byte[] header;

    private SafetensorsLayout(Map<String, TensorInfo> tensors, byte[] header) {
        this.tensors = Collections.unmodifiableMap(tensors);
        this.header = header;
    }

    /**
     * Gives each tensor its place.
     *
     * @param metadata the strings of the header, in this order
     * @param entries tensors of different names whose sizes are possible, see {@link SafetensorsWriter#add}
     * @throws IllegalArgumentException if the header becomes longer than the format allows
     */
    public static SafetensorsLayout of(Map<String, String> metadata, Collection<Entry> entries) {
        List<Entry> ordered = new ArrayList<>(entries);
        ordered.sort(Comparator.comparing(Entry::dtype).reversed().thenComparing(Entry::name, JsonText.BY_CODE_POINT));
        Map<String, TensorInfo> tensors = new LinkedHashMap<>();
        long offset = 0;
        for (Entry entry : ordered) {
            long end = Math.addExact(offset, SafetensorsHeader.bytes(entry.dtype(), entry.shape()));
            tensors.put(entry.name(), new TensorInfo(entry.name(), entry.dtype(), entry.shape(), offset, end));
            offset = end;
        }
        return new SafetensorsLayout(tensors, header(new SafetensorsHeader(metadata, tensors)));
    }

    /** The tensors in the order of their data; their places count from the end of the header. */
    public Map<String, TensorInfo> tensors() {
        return tensors;
    }

    /** The bytes before the data: the length and the header, padded to eight bytes. */
    public byte[] header() {
        return header.clone();
    }

    private static byte[] header(SafetensorsHeader header) {
        byte[] json = header.text().getBytes(StandardCharsets.UTF_8);
        int padded = (json.length + 7) & ~7;
        if (padded > SafetensorsHeader.MAX_BYTES) {
            throw new IllegalArgumentException("the header has " + padded + " bytes, more than "
                    + SafetensorsHeader.MAX_BYTES + "; spread the tensors over several files");
        }
        ByteBuffer buffer = ByteBuffer.allocate(8 + padded).order(ByteOrder.LITTLE_ENDIAN);
        buffer.putLong(padded).put(json);
        while (buffer.hasRemaining()) {
            buffer.put((byte) ' ');
        }
        return buffer.array();
    }
}
