package org.lora4j.combine;

/** Told how far a combination, extraction or change of ranks is. */
@FunctionalInterface
public interface LayerListener {
    /** A listener that does nothing. */
    LayerListener NONE = (done, total, path) -> {};

    /**
     * @param done layers that are finished
     * @param total all layers
     * @param path the one just finished
     */
    void layer(int done, int total, String path);
}
