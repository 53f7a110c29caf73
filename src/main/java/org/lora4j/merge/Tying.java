package org.lora4j.merge;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.ShardedCheckpoint.Location;

/** The embedding and the output layer of a checkpoint whose model ties them. */
final class Tying {
    private final BaseCheckpoint base;
    private final TiedPolicy policy;
    private final @Nullable String input;
    private @Nullable String output;
    private boolean untied;

    Tying(BaseCheckpoint base, TiedPolicy policy) {
        this.base = base;
        this.policy = policy;
        this.input = base.tied() ? base.inputEmbedding() : null;
        this.output = base.names().stream()
                .filter(BaseCheckpoint::isOutput)
                .findFirst()
                .orElse(null);
    }

    /** Whether a tensor is one of the two. */
    boolean concerns(String tensor) {
        return input != null && (tensor.equals(input) || BaseCheckpoint.isOutput(tensor));
    }

    /** The tensor a change of one of the two is about when both follow: those that are stored. */
    List<String> both() {
        List<String> stored = new ArrayList<>();
        if (input != null) {
            stored.add(input);
        }
        if (output != null) {
            stored.add(output);
        }
        return stored;
    }

    @Nullable
    String input() {
        return input;
    }

    /** The embedding as it is stored. */
    Location inputLocation() {
        Location location = input == null ? null : base.find(input);
        if (location == null) {
            throw new IllegalStateException("no tied embedding");
        }
        return location;
    }

    /** The tensors that a change of one of the two means, or none if that has to be decided first. */
    List<String> resolve(String tensor) {
        switch (policy) {
            case BOTH:
                return both();
            case UNTIE:
                untied = true;
                if (BaseCheckpoint.isOutput(tensor)) {
                    output = tensor;
                }
                return List.of(tensor);
            default:
                return List.of();
        }
    }

    /** Whether the result has an output layer of its own. */
    boolean untied() {
        return untied;
    }

    /** The name of that output layer. */
    String output() {
        return output == null ? "lm_head.weight" : output;
    }

    /** The reason a change of one of the two is refused. */
    static String refusal(String what, String tensor) {
        return what + " changes " + tensor
                + ", and config.json ties the embedding and the output layer: choose to write an"
                + " output layer of its own (--tied untie, what the adapted model computes) or to change both (--tied"
                + " both, what PEFT's merge does)";
    }

    /** Fields of {@code config.json} that change. */
    Map<String, Object> configChanges() {
        Map<String, Object> changes = new LinkedHashMap<>();
        if (untied) {
            changes.put("tie_word_embeddings", false);
        }
        return changes;
    }
}
