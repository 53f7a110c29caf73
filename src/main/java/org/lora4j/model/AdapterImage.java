package org.lora4j.model;

import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.LongStream;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Device;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
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

    /** A factor in the block. */
    private record Place(ScalarType type, long rows, long columns, long offset, long bytes) {}

    /** The update of one layer. */
    private record Piece(Place a, Place b, double scale) {}

    /** One layer's update on its way into the block. */
    record Source(Tensor a, Tensor b, double scale) {}

    private final Map<String, Piece> pieces = new LinkedHashMap<>();
    private final Tensor block;
    private final long bytes;
    private final String hash;

    /**
     * Copies factors into a block.
     *
     * @param sources by layer path, A (r, in) and B (out, r) each
     * @param pinned whether the block is to be copied to a GPU
     */
    AdapterImage(Map<String, Source> sources, boolean pinned) {
        long end = 0;
        for (Map.Entry<String, Source> entry : sources.entrySet()) {
            Place a = place(entry.getValue().a(), end);
            Place b = place(entry.getValue().b(), a.offset() + aligned(a.bytes()));
            end = b.offset() + aligned(b.bytes());
            pieces.put(entry.getKey(), new Piece(a, b, entry.getValue().scale()));
        }
        bytes = end;
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            Tensor memory = torch.empty(new long[] {Math.max(end, 1)}, new TensorOptions(ScalarType.Byte), null);
            block = Tensors.keep(pinned ? memory.pin_memory() : memory);
            sources.forEach((path, source) -> {
                Piece piece = pieces.get(path);
                if (piece != null) {
                    view(block, piece.a()).copy_(source.a());
                    view(block, piece.b()).copy_(source.b());
                }
            });
            hash = digest();
        }
    }

    /** The memory an adapter with these factors takes. */
    static long bytes(Iterable<Source> sources) {
        long sum = 0;
        for (Source source : sources) {
            sum += aligned(place(source.a(), 0).bytes())
                    + aligned(place(source.b(), 0).bytes());
        }
        return sum;
    }

    private static Place place(Tensor factor, long offset) {
        ScalarType type = Tensors.type(factor);
        // Float64 is not among the types of the operations.
        ScalarType kept = type == ScalarType.BFloat16 || type == ScalarType.Half ? type : ScalarType.Float;
        long width = kept == ScalarType.Float ? 4 : 2;
        return new Place(kept, factor.size(0), factor.size(1), offset, factor.numel() * width);
    }

    private static long aligned(long size) {
        return (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }

    private static Tensor view(Tensor block, Place place) {
        return block.narrow(0, place.offset(), place.bytes()).view(place.type()).view(place.rows(), place.columns());
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
        List<byte[]> parts = LongStream.range(0, blocks)
                .parallel()
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
