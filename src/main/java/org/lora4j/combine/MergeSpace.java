package org.lora4j.combine;

/** Where elements are pruned and signs elected. */
public enum MergeSpace {
    /** On the elements of the updates (out, in). */
    DELTA,
    /**
     * On the small matrices that the updates are in bases all adapters share, so that neither time nor memory grows with
     * out times in: core space merging (arXiv:2509.17786). The rank is at most the sum of the ranks.
     */
    CORE
}
