package org.lora4j.model;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.IntBuffer;
import java.nio.ShortBuffer;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.LongStream;
import java.util.stream.Stream;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Device;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.format.FormatException;
import org.lora4j.format.SafetensorsFile;
import org.lora4j.format.TensorFile;
import org.lora4j.format.TensorInfo;
import org.lora4j.layer.PooledAdapter;
import org.lora4j.ops.LowRank;
import org.lora4j.ops.Tensors;

/**
 * An adapter read from its files into one block of host memory, checked against the model: what is copied to a device. On
 * the CPU the copy is the block itself. Ranks are the adapter's own, types those of the file.
 */
public final class AdapterImage implements AutoCloseable {
    /** Where each factor begins is a multiple of this: a cache line. */
    private static final long ALIGNMENT = 64;

    private static final long HASH_BLOCK = 1 << 20;

    /** Adapters larger than this are read by all cores, others by the caller alone, who may be one of many. */
    private static final long LARGE = 8 << 20;

    /**
     * A factor in the block.
     *
     * @param turned whether it lies there column by column: B does, so that one row's update reads it as it lies
     */
    private record Place(ScalarType type, long rows, long columns, long offset, long bytes, boolean turned) {}

    /** The update of one layer. */
    private record Piece(Place a, Place b, double scale) {}

    /** A factor in a file: its key and the mapped tensor. */
    record Factor(String key, Tensor value) {}

    /** One layer's update on its way into the block. */
    record Source(Factor a, Factor b, double scale) {}

    /** A factor and its place. */
    private record Move(Factor factor, Place place) {}

    private final Map<String, Piece> pieces = new LinkedHashMap<>();
    private final Tensor block;
    private final long bytes;
    private final String hash;

    /**
     * Copies factors into a block.
     *
     * @param sources by layer path, A (r, in) and B (out, r) each
     * @param file holds them
     * @param pinned whether the block is to be copied to a GPU
     * @throws IOException if the file cannot be read or is not what it was when it was mapped
     */
    AdapterImage(Map<String, Source> sources, TensorFile file, boolean pinned) throws IOException {
        long end = 0;
        for (Map.Entry<String, Source> entry : sources.entrySet()) {
            Place a = place(entry.getValue().a().value(), end, false);
            Place b = place(entry.getValue().b().value(), a.offset() + aligned(a.bytes()), true);
            end = b.offset() + aligned(b.bytes());
            pieces.put(entry.getKey(), new Piece(a, b, entry.getValue().scale()));
        }
        bytes = end;
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            Tensor memory = torch.empty(new long[] {Math.max(end, 1)}, new TensorOptions(ScalarType.Byte), null);
            block = Tensors.keep(pinned ? memory.pin_memory() : memory);
            List<Move> moves = new ArrayList<>();
            sources.forEach((path, source) -> {
                Piece piece = pieces.get(path);
                if (piece != null) {
                    moves.add(new Move(source.a(), piece.a()));
                    moves.add(new Move(source.b(), piece.b()));
                }
            });
            fill(moves, file);
            hash = digest();
        }
    }

    /**
     * Reads factors into their places. Reading costs less than copying from mapped memory, whose pages come one by one, and
     * a file that somebody truncates is an error, not the end of the process.
     */
    private void fill(List<Move> moves, TensorFile file) throws IOException {
        BytePointer data = new BytePointer(block.data_ptr());
        List<Move> plain = new ArrayList<>();
        for (Move move : moves) {
            if (file instanceof SafetensorsFile
                    && Tensors.type(move.factor().value()) == move.place().type()) {
                plain.add(move);
            } else {
                view(block, move.place()).copy_(move.factor().value());
            }
        }
        if (file instanceof SafetensorsFile tensors) {
            try {
                Stream<Move> each = bytes > LARGE ? plain.parallelStream() : plain.stream();
                each.forEach(move -> read(tensors, move, data));
            } catch (UncheckedIOException e) {
                throw e.getCause();
            }
        }
    }

    private static void read(SafetensorsFile file, Move move, BytePointer data) {
        Place place = move.place();
        String key = move.factor().key();
        try {
            TensorInfo info = file.tensors().get(key);
            if (info == null || info.bytes() != place.bytes()) {
                throw new FormatException(file.path() + ": changed while it was read; load it again");
            }
            BytePointer part = new BytePointer(data);
            part.position(place.offset()).limit(place.offset() + place.bytes());
            if (place.turned()) {
                ByteBuffer rows = ByteBuffer.allocate(Math.toIntExact(place.bytes()));
                file.read(key, 0, rows);
                turn(rows.flip(), part.asByteBuffer(), place);
            } else {
                file.read(key, 0, part.asByteBuffer());
            }
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }

    /** Transposes a factor whose rows follow each other, column by column. */
    private static void turn(ByteBuffer from, ByteBuffer to, Place place) {
        int rows = Math.toIntExact(place.rows());
        int columns = Math.toIntExact(place.columns());
        if (place.type() == ScalarType.Float) {
            int[] values = new int[rows * columns];
            from.order(ByteOrder.nativeOrder()).asIntBuffer().get(values);
            int[] line = new int[rows];
            IntBuffer out = to.order(ByteOrder.nativeOrder()).asIntBuffer();
            for (int k = 0; k < columns; k++) {
                for (int i = 0; i < rows; i++) {
                    line[i] = values[i * columns + k];
                }
                out.put(line);
            }
        } else {
            short[] values = new short[rows * columns];
            from.order(ByteOrder.nativeOrder()).asShortBuffer().get(values);
            short[] line = new short[rows];
            ShortBuffer out = to.order(ByteOrder.nativeOrder()).asShortBuffer();
            for (int k = 0; k < columns; k++) {
                for (int i = 0; i < rows; i++) {
                    line[i] = values[i * columns + k];
                }
                out.put(line);
            }
        }
    }

    /** The memory an adapter with these factors takes. */
    static long bytes(Iterable<Source> sources) {
        long sum = 0;
        for (Source source : sources) {
            sum += aligned(place(source.a().value(), 0, false).bytes())
                    + aligned(place(source.b().value(), 0, true).bytes());
        }
        return sum;
    }

    private static Place place(Tensor factor, long offset, boolean turned) {
        ScalarType type = Tensors.type(factor);
        // Float64 is not among the types of the operations.
        ScalarType kept = type == ScalarType.BFloat16 || type == ScalarType.Half ? type : ScalarType.Float;
        long width = kept == ScalarType.Float ? 4 : 2;
        return new Place(kept, factor.size(0), factor.size(1), offset, factor.numel() * width, turned);
    }

    private static long aligned(long size) {
        return (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }

    private static Tensor view(Tensor block, Place place) {
        Tensor values = block.narrow(0, place.offset(), place.bytes()).view(place.type());
        return place.turned()
                ? values.view(place.columns(), place.rows()).t()
                : values.view(place.rows(), place.columns());
    }

    /** How much memory the factors take, here and on a device. */
    public long bytes() {
        return bytes;
    }

    /**
     * SHA-256 of everything the adapter computes with: paths, types, ranks, scales and factors. Two adapters with the same
     * are the same, whatever their names.
     */
    public String hash() {
        return hash;
    }

    /** The adapter on a device. It stays usable after this image is closed. */
    public PooledAdapter to(Device device) {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            List<Tensor> kept = new ArrayList<>();
            Tensor there = block.to(device, ScalarType.Byte);
            Map<String, LowRank> updates = new LinkedHashMap<>();
            pieces.forEach((path, piece) -> {
                Tensor a = Tensors.keep(view(there, piece.a()));
                Tensor b = Tensors.keep(view(there, piece.b()));
                kept.add(a);
                kept.add(b);
                updates.put(path, new LowRank(a, b, piece.scale()));
            });
            return new PooledAdapter(updates, () -> kept.forEach(Tensor::close), bytes);
        }
    }

    private String digest() {
        StringBuilder layout = new StringBuilder();
        pieces.forEach((path, piece) -> layout.append(path).append(piece).append('\n'));
        long blocks = (bytes + HASH_BLOCK - 1) / HASH_BLOCK;
        BytePointer data = new BytePointer(block.data_ptr());
        zeroGaps(data);
        LongStream numbers = LongStream.range(0, blocks);
        List<byte[]> parts = (bytes > LARGE ? numbers.parallel() : numbers)
                .mapToObj(i -> {
                    BytePointer part = new BytePointer(data);
                    long from = i * HASH_BLOCK;
                    part.position(from).limit(Math.min(bytes, from + HASH_BLOCK));
                    MessageDigest digest = sha256();
                    digest.update(part.asByteBuffer());
                    return digest.digest();
                })
                .toList();
        MessageDigest all = sha256();
        all.update(layout.toString().getBytes(StandardCharsets.UTF_8));
        parts.forEach(all::update);
        return HexFormat.of().formatHex(all.digest());
    }

    /** The bytes between factors belong to the hash and must not be chance. */
    private void zeroGaps(BytePointer data) {
        for (Piece piece : pieces.values()) {
            for (Place place : List.of(piece.a(), piece.b())) {
                for (long i = place.offset() + place.bytes(); i < place.offset() + aligned(place.bytes()); i++) {
                    data.put(i, (byte) 0);
                }
            }
        }
    }

    private static MessageDigest sha256() {
        try {
            return MessageDigest.getInstance("SHA-256");
        } catch (NoSuchAlgorithmException e) {
            throw new IllegalStateException("this Java has no SHA-256", e);
        }
    }

    @Override
    public void close() {
        block.close();
    }
}
