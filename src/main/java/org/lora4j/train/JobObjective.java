package org.lora4j.train;

import java.util.Arrays;
import java.util.List;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.lora4j.model.LoraModel;
import org.lora4j.model.causal.CausalLM;

/** The completions of one job among several: its rows use its adapter. */
final class JobObjective implements Objective<Sample> {
    private final LoraModel<CausalLM> model;
    private final String adapter;
    private final ChunkedLoss loss;
    private final TrainOptions options;

    JobObjective(LoraModel<CausalLM> model, String adapter, TrainOptions options) {
        this.model = model;
        this.adapter = adapter;
        this.loss = new ChunkedLoss(model.base());
        this.options = options;
    }

    @Override
    public long weight(List<Sample> batch) {
        return batch.stream()
                .mapToLong(sample -> sample.targets(options.maxLength()))
                .sum();
    }

    @Override
    public double backward(List<Sample> batch, double scale) {
        throw new UnsupportedOperationException("jobs share their backward pass");
    }

    /** Adds the gradient for the hidden states of the job's rows, and those of its adapter at the head. */
    double gradient(ChunkedLoss.Rows rows, Tensor scale, Tensor into) {
        try (LoraModel.Scope own = model.rows(adapter)) {
            return loss.gradient(rows, scale, into);
        }
    }

    @Override
    public double value(List<Sample> samples) {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            Batch batch = Batch.of(samples, options.maxLength());
            String[] names = new String[samples.size()];
            Arrays.fill(names, adapter);
            Tensor hidden;
            try (LoraModel.Scope rows = model.rows(names)) {
                hidden = model.base().hidden(batch.ids(), null, null);
            }
            try (LoraModel.Scope own = model.rows(adapter)) {
                return loss.value(hidden, batch.labels());
            }
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
    public String checksum(List<Sample> data) {
        return Completions.checksumOf(data);
    }
}
