package org.lora4j.model;

import org.bytedeco.pytorch.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * A model that tells which tokens its forward passes are about. Adapters that depend on them, as activated LoRA (aLoRA) does,
 * then work without {@link LoraModel#invocation}. {@link LoraModel} sets the listener of a base model that implements this.
 */
public interface TokenSource {
    /** Hears of forward passes. */
    interface Listener {
        /**
         * A pass begins on this thread.
         *
         * @param inputIds int64 (B, T), the tokens of this pass; negative at padding
         * @param sequence what carries the batch from one pass to the next, as a cache does; null if nothing does
         * @param first whether no token of {@code sequence} came before
         * @return to be closed on this thread when the pass is over
         */
        LoraModel.Scope begin(Tensor inputIds, @Nullable Object sequence, boolean first);
    }

    /** Sets who hears of forward passes, in place of any other; null for nobody. */
    void listener(@Nullable Listener listener);
}
