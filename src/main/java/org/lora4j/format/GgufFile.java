package org.lora4j.format;

import java.io.EOFException;
import java.io.IOException;
import java.nio.BufferUnderflowException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.OptionalLong;
import org.jspecify.annotations.Nullable;

/**
 * An open GGUF file of versions 2 and 3 with tensors of F32, F16, BF16 or F64, as llama.cpp's adapters have. Shapes are in
 * row-major order, so the reverse of the file's.
 */
public final class GgufFile implements TensorFile {
    static final int MAGIC = 0x46554747;
    static final String ALIGNMENT = "general.alignment";
    static final int DEFAULT_ALIGNMENT = 32;
    private static final int MAX_HEADER = 64 << 20;
    private static final int MAX_DIMENSIONS = 4;

    private final Path path;
    private final FileChannel channel;
    private final Map<String, Object> values;
    private final Map<String, TensorInfo> tensors;
    private final long dataOffset;

    private GgufFile(Path path, FileChannel channel, Header header) {
        this.path = path;
        this.channel = channel;
        this.values = Collections.unmodifiableMap(header.values);
        this.tensors = Collections.unmodifiableMap(header.tensors);
        this.dataOffset = header.dataOffset;
    }

    /** Whether a file begins as GGUF does. */
    public static boolean recognises(Path path) throws IOException {
        if (!Files.isRegularFile(path)) {
            return false;
        }
        try (FileChannel channel = FileChannel.open(path, StandardOpenOption.READ)) {
            ByteBuffer start = ByteBuffer.allocate(4).order(ByteOrder.LITTLE_ENDIAN);
            while (start.hasRemaining() && channel.read(start) >= 0) {}
            return !start.hasRemaining() && start.getInt(0) == MAGIC;
        }
    }

    /**
     * Opens a file and checks all of its header.
     *
     * @throws FormatException with the defect, or the type of a tensor that is not read here
     */
    public static GgufFile open(Path path) throws IOException {
        FileChannel channel = FileChannel.open(path, StandardOpenOption.READ);
        try {
            long size = channel.size();
            ByteBuffer start = ByteBuffer.allocate((int) Math.min(size, MAX_HEADER));
            while (start.hasRemaining() && channel.read(start) >= 0) {}
            Header header = new Header(path, start.flip().order(ByteOrder.LITTLE_ENDIAN), size);
            header.read();
            return new GgufFile(path, channel, header);
        } catch (Throwable failure) {
            channel.close();
            throw failure;
        }
    }

    @Override
    public Path path() {
        return path;
    }

    /** The scalars and strings of the file as text; lists are left out. */
    @Override
    public Map<String, String> metadata() {
        Map<String, String> strings = new LinkedHashMap<>();
        values.forEach((key, value) -> {
            if (!(value instanceof List<?>)) {
                strings.put(key, value.toString());
            }
        });
        return strings;
    }

    /** Everything the file says beside its tensors: strings, Boolean, Long, Double and lists of these. */
    public Map<String, Object> values() {
        return values;
    }

    @Override
    public Map<String, TensorInfo> tensors() {
        return tensors;
    }

    @Override
    public OptionalLong place(String name) {
        return OptionalLong.of(dataOffset + tensor(name).begin());
    }

    @Override
    public ByteBuffer read(String name) throws IOException {
        TensorInfo tensor = tensor(name);
        if (tensor.bytes() > Integer.MAX_VALUE - 8) {
            throw new IllegalArgumentException(path + ": tensor \"" + name + "\" is more than one buffer holds");
        }
        ByteBuffer buffer = ByteBuffer.allocate((int) tensor.bytes()).order(ByteOrder.LITTLE_ENDIAN);
        long at = dataOffset + tensor.begin();
        while (buffer.hasRemaining()) {
            int count = channel.read(buffer, at);
            if (count < 0) {
                throw new EOFException(path + ": ended at byte " + at + "; do not change a file that is open");
            }
            at += count;
        }
        return buffer.flip().order(ByteOrder.LITTLE_ENDIAN);
    }

    @Override
    public TensorSource source(String name) {
        TensorInfo tensor = tensor(name);
        return out -> StoredTensor.copy(channel, path.toString(), dataOffset + tensor.begin(), tensor.bytes(), out);
    }

    @Override
    public void close() throws IOException {
        channel.close();
    }

    /** The number of a type in the file, or null for types that have none here. */
    static @Nullable Integer number(DType dtype) {
        return switch (dtype) {
            case F32 -> 0;
            case F16 -> 1;
            case F64 -> 28;
            case BF16 -> 30;
            default -> null;
        };
    }

    /** Reads what comes before the data. */
    private static final class Header {
        private final Path path;
        private final ByteBuffer in;
        private final long size;
        private final Map<String, Object> values = new LinkedHashMap<>();
        private final Map<String, TensorInfo> tensors = new LinkedHashMap<>();
        private long dataOffset;

        Header(Path path, ByteBuffer in, long size) {
            this.path = path;
            this.in = in;
            this.size = size;
        }

        private FormatException defect(String what) {
            return new FormatException(path + ": " + what + "; copy or download it again");
        }

        void read() throws FormatException {
            try {
                if (in.getInt() != MAGIC) {
                    throw defect("does not begin as GGUF does");
                }
                int version = in.getInt();
                if (version != 2 && version != 3) {
                    throw defect("is GGUF of version " + version + ", and 2 and 3 of little endian are read");
                }
                long tensorCount = count(in.getLong(), 24, "tensors");
                long valueCount = count(in.getLong(), 13, "values");
                for (long i = 0; i < valueCount; i++) {
                    String key = string();
                    if (values.put(key, value(in.getInt(), 0)) != null) {
                        throw defect("has the key \"" + key + "\" twice");
                    }
                }
                List<long[]> places = new ArrayList<>();
                List<Object[]> found = new ArrayList<>();
                for (long i = 0; i < tensorCount; i++) {
                    found.add(tensor());
                }
                place(found, places);
            } catch (BufferUnderflowException e) {
                throw new FormatException(
                        path + ": ends within its header, or has one of over " + MAX_HEADER + " bytes; copy or"
                                + " download it again",
                        e);
            }
        }

        private long count(long claimed, int least, String what) throws FormatException {
            if (claimed < 0 || claimed > size / least) {
                throw defect("claims " + Long.toUnsignedString(claimed) + " " + what + " in " + size + " bytes");
            }
            return claimed;
        }

        private String string() throws FormatException {
            long length = in.getLong();
            if (length < 0 || length > in.remaining()) {
                throw defect("has a string of " + Long.toUnsignedString(length) + " bytes beyond its end");
            }
            ByteBuffer bytes = in.slice().limit((int) length);
            in.position(in.position() + (int) length);
            try {
                return StandardCharsets.UTF_8.newDecoder().decode(bytes).toString();
            } catch (CharacterCodingException e) {
                throw new FormatException(path + ": has a string that is not UTF-8; copy or download it again", e);
            }
        }

        private Object value(int type, int depth) throws FormatException {
            return switch (type) {
                case 0 -> (long) (in.get() & 0xff);
                case 1 -> (long) in.get();
                case 2 -> (long) (in.getShort() & 0xffff);
                case 3 -> (long) in.getShort();
                case 4 -> in.getInt() & 0xffffffffL;
                case 5 -> (long) in.getInt();
                case 6 -> (double) in.getFloat();
                case 7 -> truth(in.get());
                case 8 -> string();
                case 9 -> list(depth);
                case 10, 11 -> in.getLong();
                case 12 -> in.getDouble();
                default -> throw defect("has a value of the unknown type " + type);
            };
        }

        private Boolean truth(byte value) throws FormatException {
            if (value != 0 && value != 1) {
                throw defect("has the truth value " + value);
            }
            return value == 1;
        }

        private List<Object> list(int depth) throws FormatException {
            if (depth > 3) {
                throw defect("has lists within lists, more than 4 deep");
            }
            int type = in.getInt();
            long length = count(in.getLong(), 1, "entries of a list");
            List<Object> list = new ArrayList<>();
            for (long i = 0; i < length; i++) {
                list.add(value(type, depth + 1));
            }
            return list;
        }

        /** Name, type, shape and offset. */
        private Object[] tensor() throws FormatException {
            String name = string();
            int dimensions = in.getInt();
            if (dimensions < 0 || dimensions > MAX_DIMENSIONS) {
                throw defect("tensor \"" + name + "\" has " + dimensions + " dimensions, more than 4");
            }
            long[] shape = new long[dimensions];
            for (int i = dimensions - 1; i >= 0; i--) {
                shape[i] = in.getLong();
            }
            int number = in.getInt();
            DType dtype = null;
            for (DType each : DType.values()) {
                Integer own = number(each);
                dtype = own != null && own == number ? each : dtype;
            }
            if (dtype == null) {
                throw new FormatException(
                        path + ": tensor \"" + name + "\" is of GGUF's type " + number
                                + ", and adapters are read in F32, F16, BF16 and F64: convert the adapter without quantization");
            }
            return new Object[] {name, dtype, shape, in.getLong()};
        }

        private void place(List<Object[]> found, List<long[]> places) throws FormatException {
            long alignment = DEFAULT_ALIGNMENT;
            Object wanted = values.get(ALIGNMENT);
            if (wanted != null) {
                boolean power = wanted instanceof Long value && value >= 8 && value <= 1 << 20;
                if (!power || Long.bitCount((Long) wanted) != 1) {
                    throw defect(ALIGNMENT + " is " + wanted + ", no power of two from 8 on");
                }
                alignment = (Long) wanted;
            }
            dataOffset = (in.position() + alignment - 1) / alignment * alignment;
            for (Object[] each : found) {
                String name = (String) each[0];
                DType dtype = (DType) each[1];
                long[] shape = (long[]) each[2];
                long begin = (Long) each[3];
                long bytes;
                try {
                    bytes = SafetensorsHeader.bytes(dtype, shape);
                } catch (ArithmeticException e) {
                    throw new FormatException(path + ": tensor \"" + name + "\" has a size beyond 63 bits", e);
                }
                boolean negative = false;
                for (long dimension : shape) {
                    negative |= dimension < 0;
                }
                if (negative || begin < 0 || begin % alignment != 0 || bytes > size - dataOffset - begin) {
                    throw defect("tensor \"" + name + "\" is not within the file, or not where one may begin");
                }
                if (tensors.put(name, new TensorInfo(name, dtype, shape, begin, begin + bytes)) != null) {
                    throw defect("has the tensor \"" + name + "\" twice");
                }
                places.add(new long[] {begin, begin + bytes});
            }
            places.sort((one, other) -> Long.compare(one[0], other[0]));
            for (int i = 1; i < places.size(); i++) {
                if (places.get(i)[0] < places.get(i - 1)[1]) {
                    throw defect("has two tensors in the same bytes");
                }
            }
        }
    }
}
