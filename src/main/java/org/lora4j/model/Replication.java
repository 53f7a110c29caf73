package org.lora4j.model;

import java.util.ArrayList;
import java.util.List;
import org.bytedeco.pytorch.Module;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.LoraConfig;

/** The stack of layers of one model, which its first adapter decides and all others must agree to. */
final class Replication {
    private final Module root;
    /** The ranges of layers in place, empty for the model's own stack; null before the first adapter. */
    private @Nullable List<List<Integer>> ranges;

    private LoraModel.@Nullable Scope original;

    Replication(Module root) {
        this.root = root;
    }

    /** Whether an adapter has decided. */
    boolean isDecided() {
        return ranges != null;
    }

    /**
     * Gives the model the stack a configuration asks for.
     *
     * @return whether modules changed
     * @throws IllegalArgumentException if the model cannot, or has adapters for another stack
     */
    boolean apply(LoraConfig config) {
        List<List<Integer>> wanted = config.layerReplication();
        if (ranges != null) {
            if (!ranges.equals(wanted)) {
                throw new IllegalArgumentException(
                        "layer_replication is " + describe(wanted)
                                + ", but the model's first adapter has given it " + describe(ranges)
                                + ": adapters of one model share its layers; set the same, or put this adapter on a model of its own");
            }
            return false;
        }
        if (!wanted.isEmpty()) {
            if (!(root instanceof ReplicableLayers model)) {
                throw new IllegalArgumentException("layer_replication is " + wanted + ", but "
                        + root.getClass().getSimpleName() + " cannot repeat its layers: implement "
                        + ReplicableLayers.class.getName() + " in it");
            }
            original = model.replicateLayers(sources(wanted, model.layerCount()));
        }
        ranges = wanted;
        return !wanted.isEmpty();
    }

    private static List<Integer> sources(List<List<Integer>> ranges, int layers) {
        List<Integer> sources = new ArrayList<>();
        for (List<Integer> range : ranges) {
            int first = range.get(0);
            int end = range.get(1);
            if (first >= end || end > layers) {
                throw new IllegalArgumentException("layer_replication is " + ranges + ", but " + range
                        + " is no range [first, end) of the model's " + layers + " layers");
            }
            for (int i = first; i < end; i++) {
                sources.add(i);
            }
        }
        return sources;
    }

    private static String describe(List<List<Integer>> ranges) {
        return ranges.isEmpty() ? "not set" : ranges.toString();
    }

    /** Puts the model's own stack back, for another adapter to decide. */
    void undo() {
        if (original != null) {
            original.close();
            original = null;
        }
        ranges = null;
    }
}
