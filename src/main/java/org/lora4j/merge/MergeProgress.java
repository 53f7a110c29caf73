package org.lora4j.merge;

/** Is told how far a merge is, from one of its threads. */
@FunctionalInterface
public interface MergeProgress {
    /** Tells nobody. */
    MergeProgress NONE = (done, total, tensor) -> {};

    /**
     * A piece was written.
     *
     * @param done bytes of the result so far
     * @param total bytes of the whole result
     * @param tensor the tensor the piece belongs to
     */
    void advance(long done, long total, String tensor);
}
