package org.lora4j.ops;

/**
 * Where the tokens of a ragged batch are: each belongs to a sequence and has a position in it, and the keys and values of a
 * sequence lie in pages of a pool.
 *
 * @param heads query heads
 * @param kvHeads key and value heads; divides {@code heads}
 * @param pageTokens tokens of a page
 * @param window a token sees itself and the {@code window - 1} tokens before it; 0 for all
 * @param sequences for each token its sequence, an index from 0
 * @param positions for each token its position in the sequence; it sees the positions up to its own
 * @param pages for each sequence the pages of the pool, in order, the same number for all: those a sequence does not need
 *     are not looked at
 * @param tableWidth pages of a sequence in {@code pages}
 */
public record Paging(
        int heads,
        int kvHeads,
        int pageTokens,
        int window,
        int[] sequences,
        int[] positions,
        int[] pages,
        int tableWidth) {
    public Paging {
        if (kvHeads < 1 || heads % kvHeads != 0 || pageTokens < 1 || window < 0 || tableWidth < 1) {
            throw new IllegalArgumentException("heads is " + heads + ", kvHeads " + kvHeads + ", pageTokens "
                    + pageTokens + ", window " + window + " and tableWidth " + tableWidth
                    + ": kvHeads must divide heads, and the others be at least 1 (window 0)");
        }
        if (sequences.length != positions.length || pages.length % tableWidth != 0) {
            throw new IllegalArgumentException("there are " + sequences.length + " sequences, " + positions.length
                    + " positions and " + pages.length + " pages in rows of " + tableWidth
                    + ": give each token both, and each sequence one row of pages");
        }
    }

    /** The same for layers that see fewer tokens. */
    public Paging withWindow(int value) {
        return new Paging(heads, kvHeads, pageTokens, value, sequences, positions, pages, tableWidth);
    }

    /** The slot of the pool where a token's key and value are. */
    public long slot(int token) {
        int position = positions[token];
        return (long) pages[sequences[token] * tableWidth + position / pageTokens] * pageTokens + position % pageTokens;
    }
}
