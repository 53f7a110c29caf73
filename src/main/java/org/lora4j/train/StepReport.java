package org.lora4j.train;

/**
 * What a step did.
 *
 * @param step the step, counted from 1
 * @param steps all steps of the run
 * @param loss mean loss per token of the batch, before the step
 * @param learningRate the learning rate
 * @param gradientNorm the norm of all gradients before clipping
 * @param tokens tokens that carried loss in this step
 * @param seconds wall time of the step
 */
public record StepReport(
        int step, int steps, double loss, double learningRate, double gradientNorm, long tokens, double seconds) {}
