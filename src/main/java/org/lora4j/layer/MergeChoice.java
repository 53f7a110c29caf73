package org.lora4j.layer;

import java.util.function.Function;
import org.bytedeco.pytorch.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * What adapters are merged into where layers are quantized.
 *
 * @param base the choice
 * @param originals for ORIGINAL, the weight (out, in) that was quantized, by the path of the layer; null where there is none
 */
public record MergeChoice(MergeBase base, Function<String, @Nullable Tensor> originals) {
    /** A choice that needs no originals. */
    public static MergeChoice of(MergeBase base) {
        if (base == MergeBase.ORIGINAL) {
            throw new IllegalArgumentException(
                    "ORIGINAL needs the weights that were quantized: pass them by layer path, or choose DEQUANTIZED");
        }
        return new MergeChoice(base, path -> null);
    }
}
