package org.lora4j.combine;

import java.util.Arrays;
import org.bytedeco.javacpp.DoublePointer;
import org.bytedeco.pytorch.LongOptional;
import org.bytedeco.pytorch.StringViewOptional;
import org.bytedeco.pytorch.T_TensorTensorTensor_T;
import org.bytedeco.pytorch.T_TensorTensor_T;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.jspecify.annotations.Nullable;
import org.lora4j.layer.Factors;
import org.lora4j.ops.Tensors;

/**
 * The leading singular components of a matrix (m, n), largest first.
 *
 * @param left orthonormal columns, (m, k)
 * @param values the k singular values
 * @param right orthonormal rows, (k, n), the largest element of each positive
 * @param total the square of the Frobenius norm of the whole matrix: what the values leave of it is the exact square of
 *     the error
 */
record Components(Tensor left, double[] values, Tensor right, double total) implements AutoCloseable {
    /** Values below this part of the largest are rounding errors of float32 factors, for each column. */
    private static final double PRECISION = 0x1p-23;

    /** Those of a matrix in memory, all of them. */
    static Components of(Tensor matrix) {
        Tensor wide = matrix.to(ScalarType.Double);
        Svd svd = Svd.of(wide);
        return svd.components(svd.u(), svd.vh(), wide.square().sum().item_double());
    }

    /**
     * Those of a weighted sum of updates, {@code B diag(f) A}: orthonormal bases of the factors, then the singular values of
     * the small matrix between them, all in float64. The sum is never formed.
     *
     * @param factors f, shape (R)
     */
    static Components of(Stacked updates, Tensor factors) {
        if (updates.b().size(1) == 0) {
            throw new IllegalArgumentException("the factors have rank 0");
        }
        Basis left = Basis.of(updates.b(), updates.gramB());
        Basis right = Basis.of(updates.a().t(), updates.gramA());
        Svd svd = Svd.of(left.r().mul(factors).matmul(right.r().t()));
        Tensor rows = right.timesTransposed(svd.vh().t());
        return svd.components(left, svd.u(), rows, svd.energy());
    }

    /**
     * A matrix as an orthonormal basis Q times R. Well-conditioned columns get it from their Gram matrix {@code V L V^T}, as
     * {@code R = L^(1/2) V^T} and {@code Q = M R^-1}, which squares the condition number: up to {@link #CONDITION} singular
     * values stay exact to 1e-8 of the largest. All others get it from Householder's QR.
     *
     * @param matrix what {@code inverse} turns into Q, or Q itself
     * @param inverse of R; null where {@code matrix} is Q
     */
    private record Basis(Tensor matrix, @Nullable Tensor inverse, Tensor r) {
        private static final double CONDITION = 1e4;

        /** @param gram of the matrix's columns */
        static Basis of(Tensor matrix, Tensor gram) {
            if (matrix.size(0) >= 2 * matrix.size(1)) {
                try (T_TensorTensor_T found = torch.linalg_eigh(gram)) {
                    Tensor squares = new Tensor(found.get0());
                    Tensor v = new Tensor(found.get1());
                    double smallest = squares.select(0, 0).item_double();
                    double largest = squares.select(0, squares.size(0) - 1).item_double();
                    if (smallest > largest / CONDITION / CONDITION) {
                        Tensor roots = squares.sqrt();
                        return new Basis(matrix, v.div(roots), v.t().mul(roots.unsqueeze(1)));
                    }
                }
            }
            Qr qr = Qr.of(matrix.contiguous());
            return new Basis(qr.q(), null, qr.r());
        }

        /** Q times columns. */
        Tensor times(Tensor columns) {
            return matrix.matmul(inverse == null ? columns : inverse.matmul(columns));
        }

        /** The transpose of {@link #times}, contiguous. */
        Tensor timesTransposed(Tensor columns) {
            Tensor small = inverse == null ? columns : inverse.matmul(columns);
            return small.t().matmul(matrix.t());
        }
    }

    int count() {
        return values.length;
    }

    /**
     * The number of values that float32 factors can tell from zero, at least 1.
     *
     * @param size the norm of what the matrix was made of, which may have cancelled
     */
    int numericalRank(double size) {
        double smallest = Math.max(size, values[0]) * PRECISION * values.length;
        int rank = 1;
        while (rank < values.length && values[rank] > smallest) {
            rank++;
        }
        return rank;
    }

    /** The squared norm of the first components. */
    double energy(int rank) {
        double energy = 0;
        for (int i = 0; i < Math.min(rank, values.length); i++) {
            energy += values[i] * values[i];
        }
        return energy;
    }

    /** The lowest rank with a part of the squared norm, or all there are if they have less. */
    int rankFor(double part) {
        double wanted = part * total * (1 - 1e-12);
        double energy = values[0] * values[0];
        int rank = 1;
        while (rank < values.length && energy < wanted) {
            energy += values[rank] * values[rank];
            rank++;
        }
        return rank;
    }

    /** B, the left vectors times the values, and A, the right ones, of a rank that may exceed the number of components. */
    Factors factors(int rank) {
        int own = Math.min(rank, values.length);
        Tensor s = Tensor.create(values).narrow(0, 0, own).to(left.device(), Tensors.type(left));
        Tensor b = left.narrow(1, 0, own).mul(s);
        Tensor a = right.narrow(0, 0, own);
        return own == rank ? new Factors(a, b) : new Factors(padded(a, 0, rank), padded(b, 1, rank));
    }

    /** With zeros at the end of a dimension. */
    static Tensor padded(Tensor tensor, int dimension, long size) {
        long[] shape = Tensors.shape(tensor);
        long own = shape[dimension];
        shape[dimension] = size;
        Tensor padded = tensor.new_zeros(shape);
        padded.narrow(dimension, 0, own).copy_(tensor);
        return padded;
    }

    /** The first components, or all if there are less. */
    Components first(int rank) {
        int kept = Math.min(rank, values.length);
        return new Components(left.narrow(1, 0, kept), Arrays.copyOf(values, kept), right.narrow(0, 0, kept), total);
    }

    /** Lets the tensors live until {@link #close}. */
    Components kept() {
        Tensors.keep(left);
        Tensors.keep(right);
        return this;
    }

    @Override
    public void close() {
        left.close();
        right.close();
    }

    /** Q and R of a matrix. */
    record Qr(Tensor q, Tensor r) {
        static Qr of(Tensor matrix) {
            try (T_TensorTensor_T qr = torch.linalg_qr(matrix)) {
                return new Qr(new Tensor(qr.get0()), new Tensor(qr.get1()));
            }
        }
    }

    /** The singular value decomposition of a small matrix. */
    record Svd(Tensor u, double[] s, Tensor vh) {
        static Svd of(Tensor matrix) {
            try (StringViewOptional driver = new StringViewOptional();
                    T_TensorTensorTensor_T found = torch.linalg_svd(matrix, false, driver)) {
                Tensor values = found.get1().to(ScalarType.Double).cpu().contiguous();
                double[] s = new double[(int) values.numel()];
                new DoublePointer(values.data_ptr()).get(s);
                return new Svd(new Tensor(found.get0()), s, new Tensor(found.get2()));
            }
        }

        double energy() {
            double sum = 0;
            for (double each : s) {
                sum += each * each;
            }
            return sum;
        }

        /**
         * With the vectors of a larger matrix, and signs that do not depend on how they were found.
         *
         * @param left columns, (m, k)
         * @param right rows, (k, n); they are changed
         */
        Components components(Tensor left, Tensor right, double total) {
            Tensor signs = signs(right);
            return new Components(left.mul(signs), s, right.mul_(signs.unsqueeze(1)), total);
        }

        /** The same with {@code left} as a basis times columns, (r, k). */
        private Components components(Basis left, Tensor columns, Tensor right, double total) {
            Tensor signs = signs(right);
            return new Components(left.times(columns.mul(signs)), s, right.mul_(signs.unsqueeze(1)), total);
        }

        /** The sign of each row's largest element. */
        private static Tensor signs(Tensor rows) {
            Tensor at = rows.abs().argmax(new LongOptional(1), true);
            return rows.gather(1, at).sign().flatten();
        }
    }
}
