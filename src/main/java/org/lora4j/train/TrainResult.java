package org.lora4j.train;

import java.nio.file.Path;
import org.jspecify.annotations.Nullable;

/**
 * What a training run did.
 *
 * @param steps optimiser steps taken, by this run and those it goes on from
 * @param tokens tokens that carried loss, over all steps
 * @param loss mean loss per token of the last step's batch, before that step; not a number if nothing was left to do
 * @param seconds wall time of this run
 * @param bestLoss the lowest held-out loss; infinite without evaluations
 * @param best the folder of the adapter with that loss, or null without evaluations or output folder
 */
public record TrainResult(
        int steps,
        long tokens,
        double loss,
        double seconds,
        double bestLoss,
        @Nullable Path best) {}
