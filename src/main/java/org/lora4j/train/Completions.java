package org.lora4j.train;

import java.util.List;
import java.util.zip.CRC32C;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.lora4j.model.causal.CausalLM;

/** The cross entropy of the learned tokens: supervised fine-tuning. */
final class Completions implements Objective<Sample> {
    private final CausalLM model;
    private final Runnable changed;
    private final ChunkedLoss loss;
    private final TrainOptions options;

    /** @param changed runs whenever parameters have changed */
    Completions(CausalLM model, Runnable changed, TrainOptions options) {
        this.model = model;
        this.changed = changed;
        this.loss = new ChunkedLoss(model);
        this.options = options;
    }

    private Batch batch(List<Sample> samples) {
        return options.packing() ? Batch.packed(samples, options.maxLength()) : Batch.of(samples, options.maxLength());
    }

    private Tensor hidden(Batch batch) {
        return batch.segments() == null
                ? model.hidden(batch.ids(), null, null)
                : model.hidden(batch.ids(), batch.segments());
    }

    @Override
    public long weight(List<Sample> batch) {
        return batch.stream()
                .mapToLong(sample -> sample.targets(options.maxLength()))
                .sum();
    }

    @Override
    public double backward(List<Sample> samples, double scale) {
        try (PointerScope scope = new PointerScope()) {
            Batch batch = batch(samples);
            return loss.backward(hidden(batch), batch.labels(), scale);
        }
    }

    @Override
    public double value(List<Sample> samples) {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            Batch batch = batch(samples);
            return loss.value(hidden(batch), batch.labels());
        }
    }

    @Override
    public void changed() {
        changed.run();
    }

    @Override
    public void training(boolean on) {
        model.train(on);
    }

    @Override
    public String checksum(List<Sample> data) {
        return checksumOf(data);
    }

    static String checksumOf(List<Sample> data) {
        if (data instanceof StreamedSamples streamed) {
            return streamed.checksum();
        }
        CRC32C crc = new CRC32C();
        for (Sample sample : data) {
            for (int i = 0; i < sample.ids().length; i++) {
                long id = sample.ids()[i] * 2 + (sample.learned(i) ? 1 : 0);
                for (int shift = 0; shift < 64; shift += 8) {
                    crc.update((int) (id >>> shift));
                }
            }
            crc.update(-1);
        }
        return data.size() + " examples, CRC-32C " + Long.toHexString(crc.getValue());
    }
}
