package org.lora4j.train;

import java.nio.file.Path;

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

    /**
     * A run begins, or goes on.
     *
     * @param step the steps taken before, by a run that is resumed
     * @param steps all steps of the run
     */
    default void onStart(int step, int steps) {}

    /** A step has been taken; called after {@link #onStep}, with more about it. */
    default void onReport(StepReport report) {}

    /**
     * A checkpoint is written.
     *
     * @param step the steps taken so far
     * @param folder where it is
     */
    default void onCheckpoint(int step, Path folder) {}

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

            @Override
            public void onStart(int step, int steps) {
                first.onStart(step, steps);
                other.onStart(step, steps);
            }

            @Override
            public void onReport(StepReport report) {
                first.onReport(report);
                other.onReport(report);
            }

            @Override
            public void onCheckpoint(int step, Path folder) {
                first.onCheckpoint(step, folder);
                other.onCheckpoint(step, folder);
            }
        };
    }
}
