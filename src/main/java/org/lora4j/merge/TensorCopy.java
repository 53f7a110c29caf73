package org.lora4j.merge;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.util.List;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.ShardedCheckpoint.Location;

/** A tensor whose bytes are taken as they are. A tile's elements are bytes here. */
final class TensorCopy implements TensorWork {
    private final Bytes source;
    private final List<Matrices.Tile> tiles;
    private final @Nullable Location replaced;
    private @Nullable String sourceHash;

    /** @param replaced the tensor of the checkpoint whose place is taken, if it is not the source itself */
    TensorCopy(Bytes source, long bytes, @Nullable Location replaced) {
        this.source = source;
        this.tiles = new Matrices(1, 1, bytes).tiles(Pipeline.TILE_BYTES);
        this.replaced = replaced;
    }

    static TensorCopy of(Location source) {
        Bytes bytes = (from, target) -> source.file().read(source.info().name(), from, target);
        return new TensorCopy(bytes, source.info().bytes(), null);
    }

    @Override
    public List<Matrices.Tile> tiles() {
        return tiles;
    }

    @Override
    public int inBytes(Matrices.Tile tile) {
        return (int) tile.elements();
    }

    @Override
    public int outBytes(Matrices.Tile tile) {
        return (int) tile.elements();
    }

    @Override
    public void read(Matrices.Tile tile, ByteBuffer in) throws IOException {
        source.read(tile.first(), in);
    }

    @Override
    public boolean isCopy() {
        return true;
    }

    @Override
    public boolean countsBytes() {
        return true;
    }

    @Override
    public void start() throws IOException {
        if (replaced != null) {
            sourceHash = Hash.of(replaced);
        }
    }

    @Override
    public @Nullable String sourceHash() {
        return sourceHash;
    }
}
