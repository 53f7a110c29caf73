package org.lora4j.ops;

/** Which elements of a tensor stay in a combination; the others count as zero. */
public sealed interface Pruning {
    /** All of them. */
    static Pruning none() {
        return new None();
    }

    /**
     * Those of the largest magnitude, as in TIES (arXiv:2306.01708): exactly {@code (long) (density * elements)}, and of
     * equal ones those that come first, row by row.
     *
     * @throws IllegalArgumentException if the density is not in [0, 1]
     */
    static Pruning magnitude(double density) {
        return new Magnitude(density);
    }

    /**
     * Each with the probability {@code density}, as in DARE (arXiv:2311.03099). Element i, counted row by row, stays if
     * word i % 4 of Philox 4x32-10, with the seed as key and (i / 4, stream) as counter, is below density * 2^32: the same
     * elements on every device.
     *
     * @param rescale whether those that stay are divided by the density, which keeps the mean
     * @param stream tells apart tensors that share a seed
     * @throws IllegalArgumentException if the density is not in [0, 1]
     */
    static Pruning random(double density, boolean rescale, long seed, long stream) {
        return new Random(density, rescale, seed, stream);
    }

    record None() implements Pruning {}

    record Magnitude(double density) implements Pruning {
        public Magnitude {
            checkDensity(density);
        }

        /** How many of so many elements stay. */
        long kept(long elements) {
            return (long) (density * elements);
        }
    }

    record Random(double density, boolean rescale, long seed, long stream) implements Pruning {
        public Random {
            checkDensity(density);
        }
    }

    private static void checkDensity(double density) {
        if (!(density >= 0 && density <= 1)) {
            throw new IllegalArgumentException(
                    "density is " + density + " but must be in [0, 1]: pass the fraction of elements to keep");
        }
    }
}
