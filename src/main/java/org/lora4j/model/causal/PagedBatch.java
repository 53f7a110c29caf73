package org.lora4j.model.causal;

import java.util.Arrays;

/**
 * Tokens of several sequences in one pass: some sequences with a stretch of their prompt, others with the one token that
 * came last.
 *
 * @param tokens the token ids, those of a sequence together and in order
 * @param sequences for each token its sequence, an index from 0 that rises by at most 1
 * @param positions for each token its position in the sequence; those before it are in the cache or in this batch
 * @param pages for each sequence the pages of the cache its tokens are in, enough for its last token here
 * @param outputs the tokens whose logits are wanted, indices into {@code tokens}
 */
public record PagedBatch(long[] tokens, int[] sequences, int[] positions, int[][] pages, int[] outputs) {
    public PagedBatch {
        if (tokens.length == 0 || tokens.length != sequences.length || tokens.length != positions.length) {
            throw new IllegalArgumentException("a batch has " + tokens.length + " tokens, " + sequences.length
                    + " sequences and " + positions.length + " positions: give at least one token, and each all three");
        }
        for (int output : outputs) {
            if (output < 0 || output >= tokens.length) {
                throw new IllegalArgumentException("output " + output + " is no token of the batch, which has "
                        + tokens.length + ": outputs are indices into tokens");
            }
        }
    }

    /** The pages as one table with rows of equal length. */
    int[] table(int width) {
        int[] table = new int[pages.length * width];
        for (int i = 0; i < pages.length; i++) {
            System.arraycopy(pages[i], 0, table, i * width, pages[i].length);
        }
        return table;
    }

    int width() {
        return Math.max(
                1, Arrays.stream(pages).mapToInt(row -> row.length).max().orElse(1));
    }
}
