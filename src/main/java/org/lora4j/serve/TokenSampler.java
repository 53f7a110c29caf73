package org.lora4j.serve;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.PriorityQueue;
import java.util.SplittableRandom;

/** Chooses the tokens of one request, by its own random stream. */
final class TokenSampler {
    private final Sampling sampling;
    private final SplittableRandom random;

    TokenSampler(Sampling sampling) {
        this.sampling = sampling;
        // Neighbouring seeds must not share streams: mix them before use.
        this.random = new SplittableRandom(new SplittableRandom(sampling.seed()).nextLong());
    }

    /** The next token by logits at {@code [from, from + count)}. */
    GeneratedToken next(float[] logits, int from, int count) {
        int best = from;
        for (int i = from + 1; i < from + count; i++) {
            if (logits[i] > logits[best]) {
                best = i;
            }
        }
        int chosen = sampling.temperature() == 0 ? best : draw(logits, from, count, logits[best]);
        if (sampling.logprobs() < 0) {
            return new GeneratedToken(chosen - from, 0, List.of());
        }
        double sum = 0;
        for (int i = from; i < from + count; i++) {
            sum += Math.exp(logits[i] - logits[best]);
        }
        double total = logits[best] + Math.log(sum);
        return new GeneratedToken(chosen - from, logits[chosen] - total, top(logits, from, count, total));
    }

    private List<GeneratedToken.Candidate> top(float[] logits, int from, int count, double total) {
        int wanted = Math.min(sampling.logprobs(), count);
        // The least likely of those kept is at the head; of equal ones the later.
        PriorityQueue<Integer> kept = new PriorityQueue<>(
                (a, b) -> logits[a] == logits[b] ? Integer.compare(b, a) : Float.compare(logits[a], logits[b]));
        for (int i = from; i < from + count && wanted > 0; i++) {
            kept.add(i);
            if (kept.size() > wanted) {
                kept.poll();
            }
        }
        List<GeneratedToken.Candidate> top = new ArrayList<>();
        while (!kept.isEmpty()) {
            int i = kept.poll();
            top.add(0, new GeneratedToken.Candidate(i - from, logits[i] - total));
        }
        return top;
    }

    private int draw(float[] logits, int from, int count, float best) {
        double[] weights = new double[count];
        double sum = 0;
        float least = leastByRank(logits, from, count);
        for (int i = 0; i < count; i++) {
            if (logits[from + i] >= least) {
                weights[i] = Math.exp((logits[from + i] - best) / sampling.temperature());
                sum += weights[i];
            }
        }
        if (sampling.topP() < 1) {
            sum = keepShare(weights, sum);
        }
        double point = random.nextDouble() * sum;
        int last = 0;
        for (int i = 0; i < count; i++) {
            if (weights[i] > 0) {
                last = i;
                point -= weights[i];
                if (point < 0) {
                    break;
                }
            }
        }
        return from + last;
    }

    private float leastByRank(float[] logits, int from, int count) {
        int k = sampling.topK();
        if (k == 0 || k >= count) {
            return Float.NEGATIVE_INFINITY;
        }
        float[] sorted = Arrays.copyOfRange(logits, from, from + count);
        Arrays.sort(sorted);
        return sorted[count - k];
    }

    /** Zeroes the weights that the largest ones do not need to reach the share, and sums the rest. */
    private double keepShare(double[] weights, double sum) {
        double[] sorted = weights.clone();
        Arrays.sort(sorted);
        double wanted = sampling.topP() * sum;
        double kept = 0;
        double least = 0;
        for (int i = sorted.length - 1; i >= 0 && kept < wanted; i--) {
            least = sorted[i];
            kept += least;
        }
        double total = 0;
        for (int i = 0; i < weights.length; i++) {
            weights[i] = weights[i] < least ? 0 : weights[i];
            total += weights[i];
        }
        return total;
    }
}
