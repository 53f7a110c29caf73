package org.lora4j.merge;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.util.List;
import org.jspecify.annotations.Nullable;

/** How one tensor of the result comes about, tile by tile. Its methods are called by one thread each. */
interface TensorWork {
    /** The pieces, in order; together they are the tensor. */
    List<Matrices.Tile> tiles();

    /** Bytes to read for a tile. */
    int inBytes(Matrices.Tile tile);

    /** Bytes to write for a tile. */
    int outBytes(Matrices.Tile tile);

    /** Reads a tile; the buffer has as many bytes left as {@link #inBytes} says. */
    void read(Matrices.Tile tile, ByteBuffer in) throws IOException;

    /** Whether what is written is what was read, so that there is nothing to compute. */
    boolean isCopy();

    /** Whether a tile is computed in the buffer it was read into, so that no other is needed. */
    default boolean isInPlace() {
        return false;
    }

    /** Whether a tile's elements are bytes, whatever the type of the tensor. */
    default boolean countsBytes() {
        return false;
    }

    /** Gets ready to compute the first tile. */
    default void start() throws IOException {}

    /**
     * Computes a tile.
     *
     * @param in what was read, ready to be read; may be overwritten
     * @param out room for {@link #outBytes}; {@code in} itself if {@link #isInPlace}
     * @return the buffer with the result, one of the two, ready to be read
     */
    default ByteBuffer compute(Matrices.Tile tile, ByteBuffer in, ByteBuffer out) throws IOException {
        return in;
    }

    /** Frees what {@link #start} got. */
    default void finish() {}

    /** SHA-256 of the tensor in the checkpoint where it is not what is read; else null. */
    default @Nullable String sourceHash() {
        return null;
    }
}
