package org.lora4j.model.causal;

import java.util.Arrays;
import java.util.BitSet;
import java.util.SplittableRandom;

/** Chooses the next token of one row. Rows have their own random stream, so that one never depends on another. */
final class Sampler {
    private final GenerationOptions options;
    private final SplittableRandom random;
    private final BitSet used = new BitSet();

    /** A sampler for row {@code row} that has seen a prompt. */
    Sampler(GenerationOptions options, int row, long[] prompt) {
        this.options = options;
        // Neighbouring seeds and rows must not share streams: mix them before use.
        this.random = new SplittableRandom(mix(options.seed()) + mix(~(long) row));
        for (long token : prompt) {
            used.set((int) token);
        }
    }

    private static long mix(long value) {
        return new SplittableRandom(value).nextLong();
    }

    /** The next token by its logits, which this may change. */
    int next(float[] logits) {
        penalise(logits);
        int token = options.sample() ? draw(logits) : argmax(logits);
        used.set(token);
        return token;
    }

    private void penalise(float[] logits) {
        float penalty = (float) options.repetitionPenalty();
        if (penalty != 1) {
            used.stream().forEach(i -> logits[i] = logits[i] < 0 ? logits[i] * penalty : logits[i] / penalty);
        }
    }

    private static int argmax(float[] logits) {
        int best = 0;
        for (int i = 1; i < logits.length; i++) {
            if (logits[i] > logits[best]) {
                best = i;
            }
        }
        return best;
    }

    private int draw(float[] logits) {
        float top = logits[argmax(logits)];
        double[] weights = new double[logits.length];
        float least = leastByRank(logits);
        double sum = 0;
        for (int i = 0; i < logits.length; i++) {
            if (logits[i] >= least) {
                weights[i] = Math.exp((logits[i] - top) / options.temperature());
                sum += weights[i];
            }
        }
        if (options.topP() < 1) {
            sum = keepShare(weights, sum);
        }
        double point = random.nextDouble() * sum;
        int last = 0;
        for (int i = 0; i < weights.length; i++) {
            if (weights[i] > 0) {
                last = i;
                point -= weights[i];
                if (point < 0) {
                    break;
                }
            }
        }
        return last;
    }

    /** The smallest logit among the {@code topK} largest. */
    private float leastByRank(float[] logits) {
        int k = options.topK();
        if (k == 0 || k >= logits.length) {
            return Float.NEGATIVE_INFINITY;
        }
        float[] sorted = logits.clone();
        Arrays.sort(sorted);
        return sorted[sorted.length - k];
    }

    /** Zeroes the weights that the largest ones do not need to reach the share {@code topP}, and sums the rest. */
    private double keepShare(double[] weights, double sum) {
        double[] sorted = weights.clone();
        Arrays.sort(sorted);
        double wanted = options.topP() * sum;
        double kept = 0;
        double least = 0;
        for (int i = sorted.length - 1; i >= 0 && kept < wanted; i--) {
            least = sorted[i];
            kept += least;
        }
        double total = 0;
        for (int i = 0; i < weights.length; i++) {
            if (weights[i] < least) {
                weights[i] = 0;
            }
            total += weights[i];
        }
        return total;
    }
}
