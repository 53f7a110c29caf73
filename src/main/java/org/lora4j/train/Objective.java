package org.lora4j.train;

import java.util.List;

/** What is minimised. */
interface Objective<T> {
    /** How much a batch counts: the number of what its loss is a sum over, such as tokens. */
    long weight(List<T> batch);

    /**
     * Adds the gradients of {@code scale} times the summed loss of a batch, which has weight. Runs in a scope of its own.
     *
     * @return the summed loss; if that is not finite, the gradients mean nothing
     */
    double backward(List<T> batch, double scale);

    /** The summed loss, without gradients. Runs in a scope of its own. */
    double value(List<T> batch);

    /** The parameters have changed. */
    default void changed() {}

    /** Switches between training and evaluation. */
    void training(boolean on);

    /** A checksum of data, so that a run is not resumed with other data. */
    String checksum(List<T> data);
}
