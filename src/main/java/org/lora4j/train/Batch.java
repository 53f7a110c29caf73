package org.lora4j.train;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import org.bytedeco.pytorch.Tensor;
import org.jspecify.annotations.Nullable;
import org.lora4j.model.causal.CausalLM;

/**
 * Samples side by side, padded on the right to the longest, or several in a row. Attention is causal, so padding changes no
 * earlier position and needs no mask; samples that share a row must not see each other, which {@code segments} tells.
 *
 * @param ids token ids, int64 (rows, length)
 * @param labels the ids where there is something to learn, {@link CausalLM#IGNORED} elsewhere; same shape
 * @param targets how many labels count after the shift by one position
 * @param segments which sample of its row a token is of, -1 at padding, same shape; null if each row has one sample
 */
record Batch(
        Tensor ids, Tensor labels, long targets, @Nullable Tensor segments) {
    /** A batch whose samples are cut to a length. The tensors belong to the caller's {@code PointerScope}. */
    static Batch of(List<Sample> samples, int maxLength) {
        List<List<Sample>> rows = new ArrayList<>();
        samples.forEach(sample -> rows.add(List.of(sample)));
        return of(rows, maxLength, false);
    }

    /** Likewise, with as many samples in a row as fit into the length. */
    static Batch packed(List<Sample> samples, int maxLength) {
        return of(rows(samples, maxLength), maxLength, true);
    }

    /** First fit, the longest first, which wastes little and depends on nothing but the samples. */
    static List<List<Sample>> rows(List<Sample> samples, int maxLength) {
        List<Sample> longest = new ArrayList<>(samples);
        longest.sort(Comparator.comparingInt((Sample sample) -> sample.length(maxLength))
                .reversed());
        List<List<Sample>> rows = new ArrayList<>();
        List<Integer> room = new ArrayList<>();
        for (Sample sample : longest) {
            int length = sample.length(maxLength);
            int row = 0;
            while (row < rows.size() && room.get(row) < length) {
                row++;
            }
            if (row == rows.size()) {
                rows.add(new ArrayList<>());
                room.add(maxLength);
            }
            rows.get(row).add(sample);
            room.set(row, room.get(row) - length);
        }
        return rows;
    }

    private static Batch of(List<List<Sample>> rows, int maxLength, boolean packed) {
        int length = 0;
        for (List<Sample> row : rows) {
            length = Math.max(
                    length,
                    row.stream().mapToInt(each -> each.length(maxLength)).sum());
        }
        long[] ids = new long[rows.size() * length];
        long[] labels = new long[ids.length];
        long[] segments = new long[ids.length];
        Arrays.fill(labels, CausalLM.IGNORED);
        Arrays.fill(segments, -1);
        long targets = 0;
        for (int row = 0; row < rows.size(); row++) {
            int at = row * length;
            for (int index = 0; index < rows.get(row).size(); index++) {
                Sample sample = rows.get(row).get(index);
                int cut = sample.length(maxLength);
                System.arraycopy(sample.ids(), 0, ids, at, cut);
                Arrays.fill(segments, at, at + cut, index);
                for (int i = 0; i < cut; i++) {
                    if (sample.learned(i)) {
                        labels[at + i] = sample.ids()[i];
                        targets++;
                    }
                }
                at += cut;
            }
        }
        long[] shape = {rows.size(), length};
        return new Batch(
                Tensor.create(ids, shape),
                Tensor.create(labels, shape),
                targets,
                packed ? Tensor.create(segments, shape) : null);
    }
}
