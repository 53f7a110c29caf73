package org.lora4j.layer;

import java.util.List;
import org.bytedeco.pytorch.GradMode;
import org.lora4j.layer.TrainingPath.Kind;

/** Which way a layer took in its last pass with gradients; refuses those that {@link FusedMode#REQUIRED} excludes. */
final class PathTaken {
    private final ActiveAdapters active;
    private final String path;
    private volatile TrainingPath last;

    PathTaken(String path, ActiveAdapters active) {
        this.path = path;
        this.active = active;
        this.last = new TrainingPath(path, Kind.NONE, "no pass with gradients yet");
    }

    TrainingPath last() {
        return last;
    }

    void note(Kind kind, String reason) {
        last = new TrainingPath(path, kind, reason);
        if (kind == Kind.AUTOGRAD && active.fused() == FusedMode.REQUIRED) {
            throw new IllegalStateException("layer '" + path + "' cannot train on the fused path: " + reason
                    + ". Change that, leave the layer out of targetModules, or use FusedMode.AUTO");
        }
    }

    /** Notes that a layer of another kind than linear trains. */
    void noteOther(LoraLayer layer, List<LoraWeights> inUse) {
        if (!(layer instanceof LoraLinear)
                && GradMode.is_enabled()
                && inUse.stream().anyMatch(LoraWeights::requiresGrad)) {
            note(Kind.AUTOGRAD, "only linear layers have a fused path, this is " + layer.type());
        }
    }
}
