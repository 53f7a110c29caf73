package org.lora4j.layer;

import java.util.Arrays;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.lora4j.config.LoraGaConfig;
import org.lora4j.ops.Tensors;

/**
 * Gradient approximation (arXiv:2407.05000), PEFT's {@code init_lora_weights="lora_ga"}: A and B start with singular vectors
 * of the gradient of the weight, so that the first steps go where full training would.
 */
public final class LoraGa {
    private static final int ITERATIONS = 4;

    private LoraGa() {}

    /**
     * The start. Random numbers come from LibTorch's generator. As in PEFT the factors are rounded to the type of the
     * weight before they are subtracted.
     *
     * @param weight shape (out, in)
     * @param gradient shape (out, in): the mean of the loss's gradients over a few batches
     * @throws IllegalArgumentException if twice the rank exceeds the smaller side, the scale is 0 and divided by, or
     *     weight or gradient are not finite or of different shapes
     */
    public static Start start(Tensor weight, int rank, double scale, Tensor gradient, LoraGaConfig settings) {
        if (settings.scale() == LoraGaConfig.Scale.GD_SCALE) {
            Start.checkScale("lora_ga", scale);
        }
        Tensor matrix = Start.matrix("lora_ga", weight, rank);
        if (!Arrays.equals(Tensors.shape(weight), Tensors.shape(gradient))) {
            throw new IllegalArgumentException("the gradient is " + Tensors.describe(gradient) + ", but the weight "
                    + Tensors.describe(weight) + ": pass the gradient of this weight");
        }
        long least = Math.min(weight.size(0), weight.size(1));
        if (2L * rank > least) {
            throw new IllegalArgumentException("lora_ga needs 2 r singular vectors of the gradient, but the rank is "
                    + rank + " and the weight " + Arrays.toString(Tensors.shape(weight)) + ": set r or rankPattern to "
                    + Math.max(1, least / 2) + " or less, or leave the layer out");
        }
        Tensor slope = Start.matrix("lora_ga", "gradient", gradient.to(matrix.device(), Tensors.type(matrix)), rank);
        Svd svd = Svd.randomized(slope, Math.min(4L * rank, least), ITERATIONS, null);
        Factors factors = scaled(choose(svd, rank, settings.direction()), matrix, rank, scale, settings);
        torch.ScalarType type = Tensors.type(weight);
        torch.ScalarType working = Tensors.type(matrix);
        Factors rounded = new Factors(
                factors.a().to(type).to(working).contiguous(),
                factors.b().to(type).to(working).contiguous());
        return Start.split(weight, matrix, rounded, scale);
    }

    /** The singular vectors that become A and B, B times its singular values. */
    private static Svd choose(Svd svd, int rank, LoraGaConfig.Direction direction) {
        TensorOptions whole = new TensorOptions(torch.ScalarType.Long);
        Tensor ofA;
        Tensor ofB;
        switch (direction) {
            case ALTERNATING -> {
                ofB = torch.arange(new Scalar(rank), whole).mul(new Scalar(2));
                ofA = ofB.add(new Scalar(1));
            }
            case A_SECOND_HALF -> {
                ofB = torch.arange(new Scalar(rank), whole);
                ofA = ofB.add(new Scalar(rank));
            }
            case B_SECOND_HALF -> {
                ofA = torch.arange(new Scalar(rank), whole);
                ofB = ofA.add(new Scalar(rank));
            }
            case RANDOM -> {
                ofA = torch.randperm(2L * rank, whole).narrow(0, 0, rank);
                ofB = ofA;
            }
            default -> throw new IllegalArgumentException("direction " + direction);
        }
        Tensor rows = ofA.to(svd.s().device(), torch.ScalarType.Long);
        Tensor columns = ofB.to(svd.s().device(), torch.ScalarType.Long);
        return new Svd(
                svd.u().index_select(1, columns),
                svd.s().index_select(0, columns),
                svd.vh().index_select(0, rows));
    }

    private static Factors scaled(Svd chosen, Tensor matrix, int rank, double scale, LoraGaConfig settings) {
        Tensor a = chosen.vh();
        Tensor b = chosen.u().mul(chosen.s());
        return switch (settings.scale()) {
            case UNIT -> new Factors(a, b);
            case GD_SCALE -> new Factors(a.div(new Scalar(scale)), b.div(new Scalar(scale)));
            case STABLE -> {
                double factor = Math.pow(matrix.size(0), 0.25) / Math.sqrt(settings.stableGamma());
                yield new Factors(a, b.mul(new Scalar(factor)));
            }
            case WEIGHT_SVD -> {
                Tensor largest =
                        Svd.randomized(matrix, rank, ITERATIONS, null).s().select(0, 0);
                double first = chosen.s().select(0, 0).item_double();
                yield new Factors(a, first > 0 ? b.mul(new Scalar(largest.item_double() / first)) : b);
            }
        };
    }
}
