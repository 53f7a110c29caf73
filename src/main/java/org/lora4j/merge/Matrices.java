package org.lora4j.merge;

import java.util.ArrayList;
import java.util.List;

/** A tensor seen as equal matrices one after another, each in row-major order. */
record Matrices(long count, long rows, long columns) {
    /** A part of one matrix whose elements lie one after another: whole rows, or a piece of one row. */
    record Tile(long matrix, long row, long rows, long column, long columns, long first) {
        long elements() {
            return rows * columns;
        }
    }

    /** @param stacked whether the first of three sizes counts matrices */
    static Matrices of(long[] shape, boolean stacked) {
        if (stacked && shape.length == 3) {
            return new Matrices(shape[0], shape[1], shape[2]);
        }
        if (shape.length < 2) {
            return new Matrices(1, 1, Numbers.count(shape));
        }
        long columns = 1;
        for (int i = 1; i < shape.length; i++) {
            columns *= shape[i];
        }
        return new Matrices(1, shape[0], columns);
    }

    /** Covers all elements in order, with at most so many in a tile. */
    List<Tile> tiles(long most) {
        List<Tile> tiles = new ArrayList<>();
        if (count * rows * columns == 0) {
            return tiles;
        }
        long height = Math.max(1, most / columns);
        long width = columns <= most ? columns : most;
        for (long m = 0; m < count; m++) {
            for (long r = 0; r < rows; r += height) {
                for (long c = 0; c < columns; c += width) {
                    long first = (m * rows + r) * columns + c;
                    tiles.add(new Tile(m, r, Math.min(height, rows - r), c, Math.min(width, columns - c), first));
                }
            }
        }
        return tiles;
    }
}
