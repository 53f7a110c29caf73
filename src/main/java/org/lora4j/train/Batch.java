package org.lora4j.train;

import java.util.Arrays;
import java.util.List;
import org.bytedeco.pytorch.Tensor;
import org.lora4j.model.causal.CausalLM;

/**
 * Samples side by side, padded on the right to the longest. Attention is causal, so padding changes no earlier position
 * and needs no mask.
 *
 * @param ids token ids, int64 (rows, length)
 * @param labels the ids where there is something to learn, {@link CausalLM#IGNORED} elsewhere; same shape
 * @param targets how many labels count after the shift by one position
 */
record Batch(Tensor ids, Tensor labels, long targets) {
    /** A batch whose samples are cut to a length. The tensors belong to the caller's {@code PointerScope}. */
    static Batch of(List<Sample> samples, int maxLength) {
        int length = 0;
        for (Sample sample : samples) {
            length = Math.max(length, Math.min(sample.ids().length, maxLength));
        }
        long[] ids = new long[samples.size() * length];
        long[] labels = new long[ids.length];
        Arrays.fill(labels, CausalLM.IGNORED);
        long targets = 0;
        for (int row = 0; row < samples.size(); row++) {
            Sample sample = samples.get(row);
            int cut = Math.min(sample.ids().length, maxLength);
            // The first token is predicted from nothing, so it is no target even without a prompt.
            int start = Math.max(1, sample.promptLength());
            System.arraycopy(sample.ids(), 0, ids, row * length, cut);
            if (start < cut) {
                System.arraycopy(sample.ids(), start, labels, row * length + start, cut - start);
                targets += cut - start;
            }
        }
        long[] shape = {samples.size(), length};
        return new Batch(Tensor.create(ids, shape), Tensor.create(labels, shape), targets);
    }
}
