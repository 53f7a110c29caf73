package org.lora4j.train;

/**
 * What a training run did.
 *
 * @param steps optimiser steps taken
 * @param tokens tokens that carried loss, over all steps
 * @param loss mean loss per token of the last step's batch, before that step
 * @param seconds wall time
 */
public record TrainResult(int steps, long tokens, double loss, double seconds) {}
