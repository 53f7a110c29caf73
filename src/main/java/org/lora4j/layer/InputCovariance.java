package org.lora4j.layer;

import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.CordaConfig;
import org.lora4j.ops.Tensors;

/**
 * The mean over samples of {@code X^T X}, X (tokens, in) being a layer's input divided by the size of its largest element:
 * what {@link Corda} weighs the weight by. PEFT's {@code preprocess_corda}.
 */
public final class InputCovariance implements AutoCloseable {
    private final boolean ownType;
    private long samples;
    private @Nullable Tensor sum;

    /** @param settings say whether the sum is in float32 or in the type of the input */
    public InputCovariance(CordaConfig settings) {
        ownType = settings.useFloat16ForCovariance();
    }

    /**
     * Takes the input of a layer into account. Each sequence of a batch is a sample, so that a batch counts like its
     * sequences one by one; PEFT takes those alone.
     *
     * @param input shape (in), (tokens, in) or (..., tokens, in)
     * @throws IllegalArgumentException if it has NaN or infinite values, or another width than before
     */
    public void add(Tensor input) {
        try (NoGradGuard noGrad = new NoGradGuard();
                PointerScope scope = new PointerScope()) {
            long width = input.size(-1);
            long tokens = input.dim() < 2 ? 1 : input.size(-2);
            if (input.numel() == 0) {
                return;
            }
            Tensor sequences = input.detach().reshape(-1, tokens, width);
            if (!ownType) {
                sequences = sequences.to(Start.working(input));
            }
            if (!torch.isfinite(sequences).all().item_bool()) {
                throw new IllegalArgumentException("the layer's input " + Tensors.describe(input)
                        + " has NaN or infinite values: check the data, or run the model in bfloat16 or float32");
            }
            Tensor total = sum;
            if (total != null && total.size(0) != width) {
                throw new IllegalArgumentException("the layer's input is " + Tensors.describe(input)
                        + ", but its width was " + total.size(0) + " before: keep one covariance for each layer");
            }
            for (long i = 0; i < sequences.size(0); i++) {
                Tensor x = sequences.select(0, i);
                x = x.div(new Scalar(size(x)));
                Tensor product = x.t().matmul(x);
                total = total == null ? product : total.add(product);
                samples++;
            }
            close();
            sum = total == null ? null : Tensors.keep(total);
        }
    }

    /** PEFT's measure: the absolute value of the largest element; where that is 0, of the element farthest from 0, or 1. */
    private static double size(Tensor x) {
        double largest = Math.abs(x.max().item_double());
        double farthest = largest > 0 ? largest : x.abs().max().item_double();
        return farthest > 0 ? farthest : 1;
    }

    /** How many samples were added. */
    public long samples() {
        return samples;
    }

    /**
     * The mean, shape (in, in). The handle belongs to the caller.
     *
     * @throws IllegalStateException if there was no sample
     */
    public Tensor mean() {
        if (sum == null) {
            throw new IllegalStateException("the layer has seen no input: run the model on some data first");
        }
        return sum.div(new Scalar((double) samples));
    }

    @Override
    public void close() {
        if (sum != null) {
            sum.close();
            sum = null;
        }
    }
}
