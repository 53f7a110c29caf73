package org.lora4j.merge;

import java.util.ArrayList;
import java.util.List;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.DType;
import org.lora4j.format.ShardedCheckpoint.Location;

/** What happens to one tensor of the checkpoint. Filled by {@link Matching}, in the order of the adapters. */
final class TensorEdit {
    /**
     * One product {@code s B A} added to a matrix.
     *
     * @param adapter the adapter's place among all
     * @param a the key of A
     * @param b the key of B
     * @param magnitude the key of DoRA's magnitudes, or null
     * @param rank columns of B for one matrix
     * @param scale s
     * @param swapped whether the matrix is stored as its transpose, (in, out)
     * @param experts how many matrices A and B hold factors for
     * @param expert which of them is meant, or -1 if the tensor holds them all
     * @param firstRow first row of B that counts; a checkpoint may hold in two tensors what the model has in one
     */
    record Update(
            int adapter,
            String a,
            String b,
            @Nullable String magnitude,
            int rank,
            double scale,
            boolean swapped,
            int experts,
            int expert,
            long firstRow) {}

    /** A bias of B, added with its adapter's scale. */
    record BiasUpdate(int adapter, String key, double scale) {}

    /** Rows of an embedding put in place of the base's. */
    record TokenRows(int adapter, String key, long[] ids) {}

    /** A tensor put in place of the base's. */
    record Value(int adapter, String key, DType dtype, long[] shape) {}

    final String name;
    /** The tensor in the checkpoint, or null if there is none of this name. */
    final @Nullable Location base;
    /** Another tensor of the checkpoint this one starts as, or null. */
    final @Nullable Location copyOf;

    final List<Update> updates = new ArrayList<>();
    final List<BiasUpdate> biases = new ArrayList<>();
    final List<TokenRows> tokens = new ArrayList<>();

    @Nullable
    Value value;

    TensorEdit(String name, @Nullable Location base, @Nullable Location copyOf) {
        this.name = name;
        this.base = base;
        this.copyOf = copyOf;
    }

    /** The type the merge computes the tensor in before it is converted: the checkpoint's. */
    DType dtype() {
        Location from = copyOf != null ? copyOf : base;
        if (from != null) {
            return from.info().dtype();
        }
        if (value == null) {
            throw new IllegalStateException("tensor \"" + name + "\" comes from nowhere");
        }
        return value.dtype();
    }

    long[] shape() {
        if (value != null) {
            return value.shape();
        }
        Location from = copyOf != null ? copyOf : base;
        if (from == null) {
            throw new IllegalStateException("tensor \"" + name + "\" comes from nowhere");
        }
        return from.info().shape();
    }

    /** The tensor as matrices that lie one after another: a vector is one row, a convolution (out, in * kernel). */
    Matrices matrices() {
        long[] shape = shape();
        boolean stacked = updates.stream().anyMatch(update -> update.expert() < 0);
        return Matrices.of(shape, stacked);
    }

    boolean hasMagnitude() {
        return updates.stream().anyMatch(update -> update.magnitude() != null);
    }

    /** Whether nothing but the products of factors changes the tensor. */
    boolean isPlain() {
        return value == null && copyOf == null && tokens.isEmpty() && biases.isEmpty() && !hasMagnitude();
    }
}
