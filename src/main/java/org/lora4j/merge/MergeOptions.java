package org.lora4j.merge;

import java.nio.file.Path;
import java.util.List;
import java.util.OptionalLong;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.DType;

/**
 * What to merge and how.
 *
 * @param checkpoint a folder with a checkpoint, or one safetensors file
 * @param adapters in the order they are added
 * @param dtype the type of all floating tensors of the result; null keeps each tensor's own
 * @param maxShardBytes the most bytes of tensors in a file of the result; 0 keeps the files as they are
 * @param tied what happens to tied embeddings
 * @param seed of stochastic rounding; empty rounds to nearest even
 * @param residual where to write what {@code unmerge} needs; null writes none
 * @param lenient whether tensors the configuration asks for and the adapter lacks are a warning only
 * @param allowNonFinite whether NaN and infinities in changed tensors are accepted
 */
public record MergeOptions(
        Path checkpoint,
        List<WeightedAdapter> adapters,
        @Nullable DType dtype,
        long maxShardBytes,
        TiedPolicy tied,
        OptionalLong seed,
        @Nullable Path residual,
        boolean lenient,
        boolean allowNonFinite) {
    public MergeOptions {
        adapters = List.copyOf(adapters);
        if (adapters.isEmpty()) {
            throw new IllegalArgumentException("adapters is empty: name at least one adapter to merge");
        }
        if (dtype != null && !Numbers.isFloat(dtype)) {
            throw new IllegalArgumentException("dtype is " + dtype + " but must be F32, BF16 or F16");
        }
        if (maxShardBytes < 0) {
            throw new IllegalArgumentException(
                    "maxShardBytes is " + maxShardBytes + " but must be 0 to keep the shards, or positive");
        }
    }

    /** The defaults: types and files as they are, tied embeddings refused, rounding to nearest, no residual. */
    public static MergeOptions of(Path checkpoint, WeightedAdapter... adapters) {
        return new MergeOptions(
                checkpoint, List.of(adapters), null, 0, TiedPolicy.REFUSE, OptionalLong.empty(), null, false, false);
    }

    public MergeOptions withDtype(@Nullable DType value) {
        return new MergeOptions(
                checkpoint, adapters, value, maxShardBytes, tied, seed, residual, lenient, allowNonFinite);
    }

    public MergeOptions withMaxShardBytes(long value) {
        return new MergeOptions(checkpoint, adapters, dtype, value, tied, seed, residual, lenient, allowNonFinite);
    }

    public MergeOptions withTied(TiedPolicy value) {
        return new MergeOptions(
                checkpoint, adapters, dtype, maxShardBytes, value, seed, residual, lenient, allowNonFinite);
    }

    /** Rounds stochastically, by a seed. */
    public MergeOptions withSeed(long value) {
        return new MergeOptions(
                checkpoint,
                adapters,
                dtype,
                maxShardBytes,
                tied,
                OptionalLong.of(value),
                residual,
                lenient,
                allowNonFinite);
    }

    public MergeOptions withResidual(@Nullable Path value) {
        return new MergeOptions(checkpoint, adapters, dtype, maxShardBytes, tied, seed, value, lenient, allowNonFinite);
    }

    public MergeOptions withLenient(boolean value) {
        return new MergeOptions(
                checkpoint, adapters, dtype, maxShardBytes, tied, seed, residual, value, allowNonFinite);
    }

    public MergeOptions withAllowNonFinite(boolean value) {
        return new MergeOptions(checkpoint, adapters, dtype, maxShardBytes, tied, seed, residual, lenient, value);
    }
}
