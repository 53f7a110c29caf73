package org.lora4j.layer;

/**
 * How a layer computed its update in its last pass with gradients.
 *
 * @param module the layer's path
 * @param kind which way it took
 * @param reason why it took no other, empty where it is fused
 */
public record TrainingPath(String module, Kind kind, String reason) {
    /** The ways. */
    public enum Kind {
        /** Update in place on the frozen layer's output; its gradients are computed with the frozen layer's. */
        FUSED,
        /** Nothing before the layer trains, so autograd computes the gradients of the factors and no others. */
        FACTORS_ONLY,
        /** Plain autograd. */
        AUTOGRAD,
        /** There was no pass with gradients yet. */
        NONE
    }
}
