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

    /** LibTorch's code of a reduction by sum. */
    private static final long SUM = 2;

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
    }

    private long chunk(long rows) {
        long byMemory = Math.max(1, chunkElements / model.config().vocabSize());
        return Math.max(1, Math.min(byMemory, (rows + SHARES - 1) / SHARES));
    }

    private Tensor sum(Tensor hidden, Tensor next) {
        // Heads with adapters expect (rows, tokens, features).
        Tensor logits = model.logits(hidden.unsqueeze(0)).squeeze(0).to(ScalarType.Float);
        return torch.cross_entropy_loss(logits, next, new TensorOptional(), SUM, CausalLM.IGNORED, 0.0);
    }

    /** The summed cross entropy, without gradients. */
    double value(Tensor hidden, Tensor labels) {
        double total = 0;
        try (NoGradGuard noGrad = new NoGradGuard();
                PointerScope scope = new PointerScope()) {
            Rows rows = Rows.of(hidden, labels);
            long count = rows.next().size(0);
            long step = chunk(count);
            for (long from = 0; from < count; from += step) {
                long size = Math.min(step, count - from);
                try (PointerScope part = new PointerScope()) {
                    total += sum(
                                    rows.hidden().narrow(0, from, size),
                                    rows.next().narrow(0, from, size))
                            .item_double();
                }
            }
        }
        return total;
    }

    /**
     * Runs the backward pass of {@code scale} times the summed cross entropy.
     *
     * @return the summed cross entropy; not finite if the model gave no number, and then no gradient reaches the model
     */
    double backward(Tensor hidden, Tensor labels, double scale) {
        Rows rows = Rows.of(hidden, labels);
        long count = rows.next().size(0);
        if (count == 0) {
            return 0;
        }
        Tensor gradient = torch.empty_like(rows.hidden().detach());
        double total = 0;
        long step = chunk(count);
        for (long from = 0; from < count; from += step) {
            long size = Math.min(step, count - from);
            try (PointerScope part = new PointerScope();
                    AutoGradMode grad = new AutoGradMode(true)) {
                Tensor leaf = rows.hidden().detach().narrow(0, from, size).detach();
                leaf.set_requires_grad(true);
                Tensor loss = sum(leaf, rows.next().narrow(0, from, size));
                double value = loss.item_double();
                total += value;
                if (!Double.isFinite(value)) {
                    return value;
                }
                loss.mul(new Scalar(scale)).backward();
                gradient.narrow(0, from, size).copy_(leaf.grad());
            }
        }
        if (rows.hidden().requires_grad()) {
            rows.hidden().backward(gradient, new BoolOptional(), false, new TensorArrayRefOptional());
        }
        return total;
    }
}
