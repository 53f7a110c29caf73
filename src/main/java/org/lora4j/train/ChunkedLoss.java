package org.lora4j.train;

import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AutoGradMode;
import org.bytedeco.pytorch.BoolOptional;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorArrayRefOptional;
import org.bytedeco.pytorch.TensorOptional;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.model.causal.CausalLM;

/**
 * Output layer and cross entropy in one, a few tokens at a time: the logits of all tokens, which for a large vocabulary are
 * by far the largest tensor of a step, never exist. Each chunk's gradient is taken at once and its logits are freed.
 */
final class ChunkedLoss {
    /** Logits that exist at a time: at most these, and at most a 32nd of all. */
    private static final long ELEMENTS = 1 << 21;

    private static final int SHARES = 32;

    /** LibTorch's code for no reduction. */
    private static final long NONE = 0;

    private final CausalLM model;
    private final long chunkElements;

    ChunkedLoss(CausalLM model) {
        this(model, ELEMENTS);
    }

    ChunkedLoss(CausalLM model, long chunkElements) {
        this.model = model;
        this.chunkElements = chunkElements;
    }

    /** The rows of hidden states whose next token counts, and that token. */
    record Rows(Tensor hidden, Tensor next) {
        /**
         * @param hidden (B, T, H)
         * @param labels int64 (B, T), {@link CausalLM#IGNORED} where a token does not count
         */
        static Rows of(Tensor hidden, Tensor labels) {
            long before = labels.size(1) - 1;
            Tensor next = labels.narrow(1, 1, before).reshape(-1);
            Tensor counted = next.ne(new Scalar(CausalLM.IGNORED)).nonzero().squeeze(1);
            Tensor rows =
                    hidden.narrow(1, 0, before).reshape(-1, hidden.size(-1)).index_select(0, counted);
            return new Rows(rows, next.index_select(0, counted));
        }

        /** Runs the backward pass of the model below the head. */
        void backward(Tensor gradient) {
            if (hidden.requires_grad() && hidden.numel() > 0) {
                hidden.backward(gradient, new BoolOptional(), false, new TensorArrayRefOptional());
            }
        }
    }

    private long chunk(long rows) {
        long byMemory = Math.max(1, chunkElements / model.config().vocabSize());
        return Math.max(1, Math.min(byMemory, (rows + SHARES - 1) / SHARES));
    }

    /** The cross entropy of each row. */
    private Tensor losses(Tensor hidden, Tensor next) {
        // Heads with adapters expect (rows, tokens, features).
        Tensor logits = model.logits(hidden.unsqueeze(0)).squeeze(0).to(ScalarType.Float);
        return torch.cross_entropy_loss(logits, next, new TensorOptional(), NONE, CausalLM.IGNORED, 0.0);
    }

    /** Work on some rows, from one on. */
    private interface Part {
        void on(long from, long size);
    }

    private void chunks(long count, Part work) {
        long step = chunk(count);
        for (long from = 0; from < count; from += step) {
            try (PointerScope part = new PointerScope()) {
                work.on(from, Math.min(step, count - from));
            }
        }
    }

    /** The cross entropy of each row, float32 (N), without gradients. */
    Tensor values(Rows rows) {
        try (NoGradGuard noGrad = new NoGradGuard()) {
            long count = rows.next().size(0);
            Tensor values = rows.hidden().detach().new_zeros(count).to(ScalarType.Float);
            chunks(
                    count,
                    (from, size) -> values.narrow(0, from, size)
                            .copy_(losses(
                                    rows.hidden().detach().narrow(0, from, size),
                                    rows.next().narrow(0, from, size))));
            return values;
        }
    }

    /** The summed cross entropy, without gradients. */
    double value(Tensor hidden, Tensor labels) {
        try (NoGradGuard noGrad = new NoGradGuard();
                PointerScope scope = new PointerScope()) {
            return values(Rows.of(hidden, labels)).to(ScalarType.Double).sum().item_double();
        }
    }

    /**
     * The gradient of a weighted sum of the rows' cross entropies for the hidden states. The head's adapters accumulate
     * theirs.
     *
     * @param weights float32 (N) or of one element for all
     * @param into (N, H), receives the gradient
     * @return the summed cross entropy, without weights; if it is not finite, the gradient is not whole
     */
    double gradient(Rows rows, Tensor weights, Tensor into) {
        double[] total = {0};
        boolean one = weights.numel() == 1;
        chunks(rows.next().size(0), (from, size) -> {
            if (!Double.isFinite(total[0])) {
                return;
            }
            try (AutoGradMode grad = new AutoGradMode(true)) {
                Tensor leaf = rows.hidden().detach().narrow(0, from, size).detach();
                leaf.set_requires_grad(true);
                Tensor losses = losses(leaf, rows.next().narrow(0, from, size));
                total[0] += losses.detach().to(ScalarType.Double).sum().item_double();
                if (Double.isFinite(total[0])) {
                    losses.mul(one ? weights : weights.narrow(0, from, size))
                            .sum()
                            .backward();
                    into.narrow(0, from, size).copy_(leaf.grad());
                }
            }
        });
        return total[0];
    }

    /**
     * Runs the backward pass of {@code scale} times the summed cross entropy.
     *
     * @return the summed cross entropy; not finite if the model gave no number, and then no gradient reaches the model
     */
    double backward(Tensor hidden, Tensor labels, double scale) {
        Rows rows = Rows.of(hidden, labels);
        Tensor gradient = torch.zeros_like(rows.hidden().detach());
        double total = gradient(
                rows, torch.scalar_tensor(new Scalar(scale)).to(gradient.device(), ScalarType.Float), gradient);
        if (Double.isFinite(total)) {
            rows.backward(gradient);
        }
        return total;
    }
}
