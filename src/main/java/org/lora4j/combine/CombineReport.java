package org.lora4j.combine;

import java.util.List;

/**
 * What a combination, an extraction or a change of ranks made.
 *
 * @param verb combine, extract or resize
 * @param sources the adapters or checkpoints
 * @param weights of the sources; empty where they have none
 * @param how type and options in words
 * @param layers what became of each layer
 * @param notes what else a user should know
 * @param seconds the time it took
 */
public record CombineReport(
        String verb,
        List<String> sources,
        List<Double> weights,
        String how,
        List<LayerReport> layers,
        List<String> notes,
        double seconds) {
    public CombineReport {
        layers = List.copyOf(layers);
        notes = List.copyOf(notes);
    }

    /** The part of the squared norm of all layers together that the ranks keep. */
    public double energy() {
        double kept = 0;
        double total = 0;
        for (LayerReport layer : layers) {
            double squared = layer.norm() * layer.norm();
            kept += squared;
            total += layer.energy() > 0 ? squared / layer.energy() : 0;
        }
        return total == 0 ? 1 : kept / total;
    }

    /** The number of elements of all factors. */
    public long parameters() {
        return layers.stream()
                .mapToLong(layer -> layer.rank() * (layer.out() + layer.in()))
                .sum();
    }

    /** The sum of all ranks. */
    public long ranks() {
        return layers.stream().mapToLong(LayerReport::rank).sum();
    }
}
