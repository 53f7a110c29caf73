package org.lora4j.combine;

import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.DeviceOptional;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.ops.LowRank;
import org.lora4j.ops.Tensors;

/** A matrix of which some rows at a time are made, so that it need not be in memory as a whole. */
interface Tiles {
    /** The elements of a tile. */
    long TILE = 1 << 20;

    /** Bytes of a matrix that is kept instead of being made anew in every pass. */
    long WHOLE = 1L << 29;

    long rows();

    long columns();

    /** float32 or float64, on the device of the data. */
    TensorOptions options();

    /**
     * Some rows, of which {@code from} is a multiple of {@link #height}: the same ones always have the same values.
     *
     * @return shape (count, columns), in the caller's scope; it may share memory with the matrix
     */
    Tensor tile(long from, long count);

    /** Receives the tiles of one or more matrices of one shape. */
    interface Visitor {
        void visit(long from, Tensor[] tiles);
    }

    /** The rows of all tiles but the last. */
    default long height() {
        return Math.max(1, Math.min(rows(), TILE / Math.max(1, columns())));
    }

    /** Goes through matrices of one shape, in a scope for each place. */
    static void forEach(Visitor visitor, Tiles... matrices) {
        long height = matrices[0].height();
        long rows = matrices[0].rows();
        for (long from = 0; from < rows; from += height) {
            try (PointerScope scope = new PointerScope()) {
                Tensor[] tiles = new Tensor[matrices.length];
                for (int i = 0; i < tiles.length; i++) {
                    tiles[i] = matrices[i].tile(from, Math.min(height, rows - from));
                }
                visitor.visit(from, tiles);
            }
        }
    }

    /** All of it. */
    default Tensor whole() {
        Tensor whole = torch.empty(new long[] {rows(), columns()}, options(), null);
        forEach((from, tiles) -> whole.narrow(0, from, tiles[0].size(0)).copy_(tiles[0]), this);
        return whole;
    }

    /** The same matrix, in memory if that is not too much. */
    default Tiles kept() {
        return rows() * columns() * 4 <= WHOLE ? of(whole()) : this;
    }

    /** The sum of the squares, in float64. */
    default double squares() {
        double[] sum = new double[1];
        forEach((from, tiles) -> sum[0] += squares(tiles[0]), this);
        return sum[0];
    }

    static double squares(Tensor tensor) {
        return tensor.to(ScalarType.Double).square().sum().item_double();
    }

    /** The product with a matrix (columns, l): shape (rows, l). */
    default Tensor times(Tensor right) {
        Tensor product = torch.empty(new long[] {rows(), right.size(1)}, options(), null);
        forEach((from, tiles) -> product.narrow(0, from, tiles[0].size(0)).copy_(tiles[0].matmul(right)), this);
        return product;
    }

    /** The product of the transposed matrix with one (rows, l): shape (columns, l). */
    default Tensor transposedTimes(Tensor right) {
        Tensor product = torch.zeros(new long[] {columns(), right.size(1)}, options());
        forEach((from, tiles) -> product.addmm_(tiles[0].t(), right.narrow(0, from, tiles[0].size(0))), this);
        return product;
    }

    /** A matrix in memory, widened to float32 tile by tile if it is of a half type. */
    static Tiles of(Tensor matrix) {
        return new Tiles() {
            @Override
            public long rows() {
                return matrix.size(0);
            }

            @Override
            public long columns() {
                return matrix.size(1);
            }

            @Override
            public TensorOptions options() {
                return wide(matrix);
            }

            @Override
            public Tensor tile(long from, long count) {
                return matrix.narrow(0, from, count).to(type(matrix));
            }

            private boolean isWide() {
                return Tensors.type(matrix) == type(matrix);
            }

            @Override
            public Tensor times(Tensor right) {
                return isWide() ? matrix.matmul(right) : Tiles.super.times(right);
            }

            @Override
            public Tensor transposedTimes(Tensor right) {
                return isWide() ? matrix.t().matmul(right) : Tiles.super.transposedTimes(right);
            }
        };
    }

    /** A low-rank update, never in memory as a whole. */
    static Tiles of(LowRank update) {
        Tensor a = update.a().to(type(update.a()));
        Tensor b = update.b().to(type(update.a())).mul(new Scalar(update.scale()));
        return new Tiles() {
            @Override
            public long rows() {
                return b.size(0);
            }

            @Override
            public long columns() {
                return a.size(1);
            }

            @Override
            public TensorOptions options() {
                return wide(a);
            }

            @Override
            public Tensor tile(long from, long count) {
                return b.narrow(0, from, count).matmul(a);
            }
        };
    }

    private static ScalarType type(Tensor tensor) {
        return Tensors.type(tensor) == ScalarType.Double ? ScalarType.Double : ScalarType.Float;
    }

    private static TensorOptions wide(Tensor tensor) {
        return new TensorOptions(type(tensor)).device(new DeviceOptional(tensor.device()));
    }
}
