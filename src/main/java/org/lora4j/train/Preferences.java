package org.lora4j.train;

import java.util.ArrayList;
import java.util.List;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.model.LoraModel;
import org.lora4j.model.causal.CausalLM;
import org.lora4j.train.PreferencePairs.Pair;

/**
 * Direct preference optimisation (arXiv:2305.18290): {@code -log sigmoid(beta (log p(chosen) - log p_0(chosen) - log
 * p(rejected) + log p_0(rejected)))}, where p_0 is the model without its adapters. Its gradient is that of the texts' cross
 * entropies with a weight for each text, so the logits need not exist at once here either.
 */
final class Preferences implements Objective<Pair> {
    private final LoraModel<CausalLM> model;
    private final ChunkedLoss loss;
    private final TrainOptions options;
    private final double beta;

    Preferences(LoraModel<CausalLM> model, TrainOptions options, double beta) {
        this.model = model;
        this.loss = new ChunkedLoss(model.base());
        this.options = options;
        this.beta = beta;
    }

    @Override
    public long weight(List<Pair> batch) {
        return batch.size();
    }

    /** Chosen texts first, then the rejected ones. */
    private Batch batch(List<Pair> pairs) {
        List<Sample> samples = new ArrayList<>();
        pairs.forEach(pair -> samples.add(pair.chosen()));
        pairs.forEach(pair -> samples.add(pair.rejected()));
        return Batch.of(samples, options.maxLength());
    }

    /** The text of each row of the loss. */
    private static Tensor texts(Batch batch) {
        long before = batch.labels().size(1) - 1;
        Tensor counted = batch.labels().narrow(1, 1, before).ne(new Scalar(CausalLM.IGNORED));
        return counted.nonzero().select(1, 0).contiguous();
    }

    /** The log probabilities (texts). */
    private Tensor logProbabilities(ChunkedLoss.Rows rows, Batch batch) {
        Tensor sums = torch.zeros(batch.ids().size(0)).to(rows.hidden().device(), ScalarType.Float);
        return sums.index_add_(0, texts(batch), loss.values(rows)).neg();
    }

    private Tensor reference(Batch batch) {
        boolean training = model.base().is_training();
        model.base().eval();
        try (LoraModel.Scope off = model.disabled();
                NoGradGuard noGrad = new NoGradGuard()) {
            return logProbabilities(
                    ChunkedLoss.Rows.of(model.base().hidden(batch.ids(), null, null), batch.labels()), batch);
        } finally {
            model.base().train(training);
        }
    }

    /** {@code beta} times the margins (pairs). */
    private Tensor margins(Tensor policy, Tensor reference) {
        Tensor gain = policy.sub(reference);
        long pairs = gain.size(0) / 2;
        return gain.narrow(0, 0, pairs).sub(gain.narrow(0, pairs, pairs)).mul(new Scalar(beta));
    }

    private static double sum(Tensor margins) {
        return torch.log_sigmoid(margins.to(ScalarType.Double)).sum().neg().item_double();
    }

    @Override
    public double backward(List<Pair> pairs, double scale) {
        try (PointerScope scope = new PointerScope()) {
            Batch batch = batch(pairs);
            Tensor reference = reference(batch);
            ChunkedLoss.Rows rows = ChunkedLoss.Rows.of(model.base().hidden(batch.ids(), null, null), batch.labels());
            // The head runs twice, with the same masks if it has dropout.
            long seed = torch.getDefaultCPUGenerator().current_seed() + 1;
            torch.manual_seed(seed);
            Tensor margins = margins(logProbabilities(rows, batch), reference);
            double sum = sum(margins);
            if (!Double.isFinite(sum)) {
                return sum;
            }
            Tensor weight = torch.sigmoid(margins.neg()).mul(new Scalar(beta * scale));
            Tensor weights = torch.cat(new org.bytedeco.pytorch.TensorVector(weight, weight.neg()), 0)
                    .index_select(0, texts(batch));
            Tensor gradient = torch.zeros_like(rows.hidden().detach());
            torch.manual_seed(seed);
            loss.gradient(rows, weights, gradient);
            rows.backward(gradient);
            return sum;
        }
    }

    @Override
    public double value(List<Pair> pairs) {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            Batch batch = batch(pairs);
            ChunkedLoss.Rows rows = ChunkedLoss.Rows.of(model.base().hidden(batch.ids(), null, null), batch.labels());
            return sum(margins(logProbabilities(rows, batch), reference(batch)));
        }
    }

    @Override
    public void changed() {
        model.refresh();
    }

    @Override
    public void training(boolean on) {
        model.base().train(on);
    }

    @Override
    public String checksum(List<Pair> data) {
        List<Sample> samples = new ArrayList<>();
        data.forEach(pair -> {
            samples.add(pair.chosen());
            samples.add(pair.rejected());
        });
        return Completions.checksumOf(samples) + ", beta " + beta;
    }
}
