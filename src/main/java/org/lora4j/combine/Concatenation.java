package org.lora4j.combine;

import java.util.List;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.lora4j.layer.LoraWeights;

/**
 * The weighted sum of several updates of one layer, exactly: the factors side by side, as PEFT's combination type
 * {@code cat}. The rank is the sum of the ranks.
 */
public final class Concatenation {
    private Concatenation() {}

    /**
     * One adapter's factors at one layer.
     *
     * @param a the A's times weight and scale, one below the other
     * @param b the B's, side by side; the scale of {@code b a} is 1
     */
    public record Factors(Tensor a, Tensor b) {}

    /**
     * Puts factors side by side: {@code B A = sum_i w_i s_i B_i A_i}.
     *
     * @param parts the adapters' factors at one layer, at least one; ranks may differ
     * @param weights a finite factor for each of them
     */
    public static Factors of(List<LoraWeights> parts, List<Double> weights) {
        if (parts.isEmpty() || parts.size() != weights.size()) {
            throw new IllegalArgumentException(parts.size() + " updates and " + weights.size()
                    + " weights: give at least one update and a weight for each");
        }
        try (NoGradGuard guard = new NoGradGuard()) {
            TensorVector as = new TensorVector();
            TensorVector bs = new TensorVector();
            for (int i = 0; i < parts.size(); i++) {
                LoraWeights part = parts.get(i);
                as.push_back(part.a().detach().mul(new Scalar(part.scale() * weights.get(i))));
                bs.push_back(part.b().detach());
            }
            return new Factors(torch.cat(as, 0), torch.cat(bs, 1));
        }
    }
}
