package org.lora4j.combine;

import java.util.List;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.config.PeftCompat;

/** Matrices of one shape made into one, element by element. */
final class Elected implements Tiles {
    private static final Scalar ZERO = new Scalar(0.0).retainReference();
    private static final Scalar ONE = new Scalar(1.0).retainReference();

    private final Tiles[] matrices;
    private final double[] weights;
    private final CombinationType.Merge merge;
    private final MajoritySign majority;
    /** Whether signs are elected without the weights, as in PEFT. */
    private final boolean unweighted;
    /** For SCE the smallest variance that stays, and how much each matrix counts. */
    private float lowestVariance;

    private double[] shares = {};

    Elected(List<Tiles> matrices, double[] weights, CombineOptions options) {
        this.matrices = matrices.toArray(new Tiles[0]);
        this.weights = weights;
        this.merge = options.type().merge();
        this.majority = options.majoritySign();
        this.unweighted = options.has(PeftCompat.ELECTION_IGNORES_WEIGHTS);
        if (merge == CombinationType.Merge.SCE) {
            Tiles variances = mapped(Elected::variance);
            long kept = (long) (options.requireDensity() * rows() * columns());
            lowestVariance = Threshold.ofLargest(variances, kept);
            shares = shares();
        }
    }

    private interface Map {
        Tensor of(Tensor[] tiles);
    }

    /** A matrix made of the weighted tiles of all. */
    private Tiles mapped(Map map) {
        return new Tiles() {
            @Override
            public long rows() {
                return matrices[0].rows();
            }

            @Override
            public long columns() {
                return matrices[0].columns();
            }

            @Override
            public TensorOptions options() {
                return matrices[0].options();
            }

            @Override
            public Tensor tile(long from, long count) {
                return map.of(weighted(tiles(from, count)));
            }
        };
    }

    private Tensor[] tiles(long from, long count) {
        Tensor[] tiles = new Tensor[matrices.length];
        for (int i = 0; i < tiles.length; i++) {
            tiles[i] = matrices[i].tile(from, count);
        }
        return tiles;
    }

    private Tensor[] weighted(Tensor[] tiles) {
        Tensor[] weighted = new Tensor[tiles.length];
        for (int i = 0; i < tiles.length; i++) {
            weighted[i] = tiles[i].mul(new Scalar(weights[i]));
        }
        return weighted;
    }

    private static Tensor sum(Tensor[] tiles) {
        Tensor sum = tiles[0].clone();
        for (int i = 1; i < tiles.length; i++) {
            sum.add_(tiles[i]);
        }
        return sum;
    }

    /** The variance of each element over the matrices; with one matrix its square. */
    private static Tensor variance(Tensor[] tiles) {
        if (tiles.length == 1) {
            return tiles[0].square();
        }
        Tensor mean = sum(tiles).div(new Scalar(tiles.length));
        Tensor variance = torch.zeros_like(mean);
        for (Tensor tile : tiles) {
            variance.add_(tile.sub(mean).square());
        }
        return variance.div_(new Scalar(tiles.length - 1));
    }

    /** How much of the energy of the elements that stay each matrix has. */
    private double[] shares() {
        double[] energies = new double[matrices.length];
        Tiles.forEach(
                (from, tiles) -> {
                    Tensor[] weighted = weighted(tiles);
                    Tensor kept = stays(weighted);
                    for (int i = 0; i < energies.length; i++) {
                        energies[i] += Tiles.squares(weighted[i].mul(kept));
                    }
                },
                matrices);
        double total = 0;
        for (double energy : energies) {
            total += energy;
        }
        for (int i = 0; i < energies.length; i++) {
            energies[i] = total == 0 ? 1.0 / energies.length : energies[i] / total;
        }
        return energies;
    }

    private Tensor stays(Tensor[] weighted) {
        return variance(weighted).to(ScalarType.Float).ge(new Scalar(lowestVariance));
    }

    @Override
    public long rows() {
        return matrices[0].rows();
    }

    @Override
    public long columns() {
        return matrices[0].columns();
    }

    @Override
    public TensorOptions options() {
        return matrices[0].options();
    }

    @Override
    public Tensor tile(long from, long count) {
        Tensor[] tiles = tiles(from, count);
        Tensor[] weighted = weighted(tiles);
        return switch (merge) {
            case SUM -> sum(weighted);
            case ELECT -> mean(weighted, signs(unweighted ? tiles : weighted));
            case SCE -> erased(weighted);
        };
    }

    /** For each matrix where it has the elected sign. Where the election is a draw it is plus; zeros have no sign. */
    private Tensor[] signs(Tensor[] voting) {
        Tensor votes = null;
        for (Tensor tile : voting) {
            Tensor vote = majority == MajoritySign.TOTAL ? tile : tile.sign();
            votes = votes == null ? vote.clone() : votes.add_(vote);
        }
        Tensor plus = votes.ge(ZERO);
        Tensor minus = plus.logical_not();
        Tensor[] agree = new Tensor[voting.length];
        for (int i = 0; i < agree.length; i++) {
            agree[i] = voting[i]
                    .gt(ZERO)
                    .logical_and_(plus)
                    .logical_or_(voting[i].lt(ZERO).logical_and_(minus));
        }
        return agree;
    }

    private static Tensor mean(Tensor[] values, Tensor[] agree) {
        Tensor sum = torch.zeros_like(values[0]);
        Tensor count = torch.zeros_like(values[0]);
        for (int i = 0; i < values.length; i++) {
            sum.addcmul_(values[i], agree[i].to(values[i].scalar_type()));
            count.add_(agree[i]);
        }
        return sum.div_(count.clamp_min_(ONE));
    }

    private Tensor erased(Tensor[] weighted) {
        Tensor stays = stays(weighted);
        for (int i = 0; i < weighted.length; i++) {
            weighted[i] = weighted[i].mul(stays);
        }
        Tensor[] agree = signs(weighted);
        Tensor sum = torch.zeros_like(weighted[0]);
        Tensor weight = torch.zeros_like(weighted[0]);
        for (int i = 0; i < weighted.length; i++) {
            Tensor share = agree[i].to(sum.scalar_type()).mul(new Scalar(shares[i]));
            sum.addcmul_(weighted[i], share);
            weight.add_(share);
        }
        Tensor nobody = weight.eq(ZERO);
        return sum.div_(weight.masked_fill_(nobody, ONE));
    }
}
