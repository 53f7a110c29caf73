package org.lora4j.train;

/** How the learning rate changes after the warm-up. */
public enum Schedule {
    /** Stays at the peak. */
    CONSTANT {
        @Override
        double decay(double progress) {
            return 1;
        }
    },
    /** Falls in a straight line to zero. */
    LINEAR {
        @Override
        double decay(double progress) {
            return 1 - progress;
        }
    },
    /** Falls along half a cosine to zero. */
    COSINE {
        @Override
        double decay(double progress) {
            return 0.5 * (1 + Math.cos(Math.PI * progress));
        }
    };

    /** The share of the peak left after {@code progress}, from 0 to 1, of the steps that follow the warm-up. */
    abstract double decay(double progress);

    /**
     * The share of the peak learning rate used at a step, as in Hugging Face's schedulers.
     *
     * @param step the step, counted from 0
     * @param warmup steps of the linear rise from 0
     * @param steps all steps
     */
    double factor(int step, int warmup, int steps) {
        if (step < warmup) {
            return (double) step / warmup;
        }
        return decay((double) (step - warmup) / Math.max(1, steps - warmup));
    }
}
