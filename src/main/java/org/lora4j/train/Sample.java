package org.lora4j.train;

import java.util.Arrays;
import java.util.BitSet;

/** A tokenised example, and which of its tokens are learned; the others are only read. */
final class Sample {
    private final long[] ids;
    private final BitSet learned;

    /**
     * @param ids all tokens
     * @param promptLength how many of them are the prompt, which carries no loss
     */
    Sample(long[] ids, int promptLength) {
        this(ids, after(ids.length, promptLength));
    }

    /** @param learned the positions that carry loss; the first never does, as it is predicted from nothing */
    Sample(long[] ids, BitSet learned) {
        this.ids = ids;
        this.learned = learned;
        learned.clear(0);
    }

    private static BitSet after(int length, int promptLength) {
        BitSet learned = new BitSet(length);
        learned.set(Math.min(promptLength, length), length);
        return learned;
    }

    long[] ids() {
        return ids;
    }

    boolean learned(int position) {
        return learned.get(position);
    }

    /** The tokens before the first that is learned. */
    int promptLength() {
        int first = learned.nextSetBit(0);
        return first < 0 ? ids.length : first;
    }

    /** The sample without what lies beyond a length. */
    Sample cut(int maxLength) {
        return ids.length <= maxLength ? this : new Sample(Arrays.copyOf(ids, maxLength), learned.get(0, maxLength));
    }

    int length(int maxLength) {
        return Math.min(ids.length, maxLength);
    }

    /** How many tokens are learned if the sample is cut. */
    int targets(int maxLength) {
        return learned.get(0, length(maxLength)).cardinality();
    }
}
