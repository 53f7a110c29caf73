package org.lora4j.combine;

import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.combine.CombinationType.Pruning;

/** A matrix with a part of its elements set to zero. */
final class Pruned implements Tiles {
    private final Tiles matrix;
    private final Pruning pruning;
    private final double density;
    private final double epsilon;
    private final int adapter;
    private final String what;
    private final Uniform uniform;
    /** The smallest magnitude that stays. */
    private float lowest;
    /** The smallest magnitude that goes again, with outliers. */
    private float outlying = Float.POSITIVE_INFINITY;

    /**
     * @param adapter the place of its adapter
     * @param what see {@link Uniform}
     */
    Pruned(Tiles matrix, CombineOptions options, int adapter, String what, Uniform uniform) {
        this.matrix = matrix;
        this.pruning = options.type().pruning();
        this.density = options.requireDensity();
        this.epsilon = options.epsilon();
        this.adapter = adapter;
        this.what = what;
        this.uniform = uniform;
        double size = (double) matrix.rows() * matrix.columns();
        if (pruning == Pruning.MAGNITUDE) {
            lowest = Threshold.ofLargest(matrix, (long) (density * size));
        } else if (pruning == Pruning.OUTLIERS) {
            long largest = (long) (options.gamma() * size);
            lowest = Threshold.ofLargest(matrix, largest + (long) (density * size));
            outlying = Threshold.ofLargest(matrix, largest);
        }
    }

    @Override
    public long rows() {
        return matrix.rows();
    }

    @Override
    public long columns() {
        return matrix.columns();
    }

    @Override
    public TensorOptions options() {
        return matrix.options();
    }

    @Override
    public Tensor tile(long from, long count) {
        Tensor tile = matrix.tile(from, count);
        return switch (pruning) {
            case NONE -> tile;
            case MAGNITUDE -> tile.mul(magnitudes(tile).ge(new Scalar(lowest)));
            case OUTLIERS -> {
                Tensor magnitudes = magnitudes(tile);
                Tensor kept = magnitudes.ge(new Scalar(lowest)).logical_and(magnitudes.lt(new Scalar(outlying)));
                yield tile.mul(kept);
            }
            case RANDOM ->
                density >= 1
                        ? tile
                        : tile.mul(drawn(from, tile).lt(new Scalar(density))).div(new Scalar(density));
            case BY_RANK -> {
                Tensor keep = byRank(magnitudes(tile));
                yield tile.mul(drawn(from, tile).lt(keep)).div(keep);
            }
        };
    }

    /** In float32, in which thresholds are found. */
    private static Tensor magnitudes(Tensor tile) {
        return tile.abs().to(ScalarType.Float);
    }

    private Tensor drawn(long from, Tensor tile) {
        return uniform.tile(adapter, what, from, tile.size(0), tile.size(1)).to(tile.device(), ScalarType.Float);
    }

    /** The probability to keep each element: it grows with the place of its magnitude in its row. */
    private Tensor byRank(Tensor magnitudes) {
        long columns = magnitudes.size(1);
        Tensor order = magnitudes.argsort(true, 1, false);
        Tensor places = torch.arange(new Scalar(columns), new TensorOptions(ScalarType.Long))
                .to(order.device(), ScalarType.Long);
        Tensor ranks = torch.empty_like(order).scatter_(1, order, places.expand(order.sizes()));
        return ranks.to(ScalarType.Float)
                .mul(new Scalar(epsilon / Math.max(1, columns - 1)))
                .add(new Scalar(density - epsilon / 2));
    }
}
