package org.lora4j.combine;

import java.util.regex.Pattern;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.PythonRegex;
import org.lora4j.format.DType;

/**
 * How to extract an adapter.
 *
 * @param rank the rule for the ranks: a number, an energy or a total
 * @param targets a regular expression of Python's for the paths of the layers that get factors, or the end of them; null
 *     for every matrix but embeddings and output layers
 * @param others what to do with everything else that changed
 * @param dtype of the factors: float32, bfloat16 or float16
 * @param seed of the random start
 */
public record ExtractOptions(RankRule rank, @Nullable String targets, Others others, DType dtype, long seed) {
    /** What changed beside the targets: biases, norms, embeddings, output layers, grown vocabularies, new modules. */
    public enum Others {
        /** Goes to {@code modules_to_save}; biases of targets to {@code lora_bias}. */
        SAVE,
        /** Is an error that names all of it. */
        ERROR
    }

    public ExtractOptions {
        if (!(rank instanceof RankRule.Fixed || rank instanceof RankRule.Energy || rank instanceof RankRule.Total)) {
            throw new IllegalArgumentException(
                    "ExtractOptions.rank = " + rank + ": must be a number, an energy or a total");
        }
        if (dtype != DType.F32 && dtype != DType.BF16 && dtype != DType.F16) {
            throw new IllegalArgumentException("ExtractOptions.dtype = " + dtype + ": must be F32, BF16 or F16");
        }
        if (targets != null) {
            pattern(targets);
        }
    }

    /** With factors in float32 for every matrix, and all else that changed kept. */
    public static ExtractOptions of(RankRule rank) {
        return new ExtractOptions(rank, null, Others.SAVE, DType.F32, 0);
    }

    private static Pattern pattern(String targets) {
        try {
            return PythonRegex.compile("(.*\\.)?(" + targets + ")");
        } catch (IllegalArgumentException e) {
            throw new IllegalArgumentException(
                    "ExtractOptions.targets = " + targets + ": must be a regular expression: " + e.getMessage(), e);
        }
    }

    /** Whether a layer is named, or may be where none is. */
    boolean means(String path) {
        return targets == null || pattern(targets).matcher(path).matches();
    }

    @Override
    public String toString() {
        return rank + (targets == null ? "" : ", targets " + targets) + ", " + dtype + ", others "
                + others.name().toLowerCase(java.util.Locale.ROOT) + (seed == 0 ? "" : ", seed " + seed);
    }
}
