package org.lora4j.train;

/** Hears how a training run goes. Called on the training thread, between steps. */
public interface TrainListener {
    /** Hears nothing. */
    TrainListener NONE = (step, steps, loss, learningRate) -> {};

    /**
     * A step has been taken.
     *
     * @param step the step, counted from 1
     * @param steps all steps of the run
     * @param loss the batch's mean loss per token, before the step
     * @param learningRate the learning rate of the step
     */
    void onStep(int step, int steps, double loss, double learningRate);

    /**
     * The held-out data has been evaluated.
     *
     * @param step the steps taken so far
     * @param loss the mean loss per token
     */
    default void onEvaluation(int step, double loss) {}

    /** A listener that passes everything on to this one, then to another. */
    default TrainListener and(TrainListener other) {
        TrainListener first = this;
        return new TrainListener() {
            @Override
            public void onStep(int step, int steps, double loss, double learningRate) {
                first.onStep(step, steps, loss, learningRate);
                other.onStep(step, steps, loss, learningRate);
            }

            @Override
            public void onEvaluation(int step, double loss) {
                first.onEvaluation(step, loss);
                other.onEvaluation(step, loss);
            }
        };
    }
}
