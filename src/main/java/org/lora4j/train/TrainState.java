package org.lora4j.train;

/**
 * Where a run is: what a checkpoint holds beside tensors. Random numbers need no state of their own, since every step seeds
 * the generator from the run's seed and the step.
 *
 * @param step steps taken
 * @param tokens tokens that carried loss so far
 * @param best the lowest held-out loss so far; infinite if there was no evaluation
 * @param bestStep the step it was measured after
 * @param withoutImprovement evaluations since
 * @param options what the run was started with
 * @param data a checksum of the training data
 */
record TrainState(
        int step, long tokens, double best, int bestStep, int withoutImprovement, String options, String data) {
    static TrainState start(String options, String data) {
        return new TrainState(0, 0, Double.POSITIVE_INFINITY, 0, 0, options, data);
    }

    TrainState stepped(long more) {
        return new TrainState(step + 1, tokens + more, best, bestStep, withoutImprovement, options, data);
    }

    TrainState evaluated(double loss, double minImprovement) {
        return loss < best - minImprovement
                ? new TrainState(step, tokens, loss, step, 0, options, data)
                : new TrainState(step, tokens, best, bestStep, withoutImprovement + 1, options, data);
    }
}
