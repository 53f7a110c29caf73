package org.lora4j.model;

/** Told how far a long operation is. */
@FunctionalInterface
public interface Progress {
    /** A listener that does nothing. */
    Progress NONE = (done, total, what) -> {};

    /**
     * @param done finished steps
     * @param total all steps
     * @param what the step just finished, such as a module path
     */
    void step(int done, int total, String what);
}
