package org.lora4j.merge;

import java.util.List;
import org.bytedeco.pytorch.Tensor;
import org.lora4j.ops.LowRank;

/** Keeps the little that is needed, beside the adapters, to get back the exact bits a merge changed. */
interface Residual {
    /** A name for the form of the bytes, so that nobody reads them as another. */
    String name();

    /**
     * What is needed for one matrix.
     *
     * @param original before the merge
     * @param merged the same matrix after it, perhaps of another type
     * @param updates what was added
     */
    byte[] encode(Tensor original, Tensor merged, List<LowRank> updates);

    /**
     * Gets the original back.
     *
     * @param residual what {@link #encode} gave
     * @param original receives the matrix
     * @throws IllegalArgumentException if the bytes are none of this form for a matrix of this size
     */
    void decode(byte[] residual, Tensor merged, List<LowRank> updates, Tensor original);

    /** Whether subtracting the updates leads close to the original. */
    static boolean isPredicted(TensorEdit edit) {
        return edit.isPlain();
    }
}
