package org.lora4j.train;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Path;
import java.util.List;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * The state of a run, and all of a step but its gradients: the order of the data, optimizer, evaluation, early stopping and
 * checkpoints.
 */
final class Run<T> implements AutoCloseable {
    private final Objective<T> objective;
    private final TrainOptions options;
    private final World world;
    private final @Nullable Checkpoints checkpoints;
    private final @Nullable List<T> heldOut;
    private final TrainListener listener;
    private final AdamW optimizer;
    private final BatchOrder<T> batches;
    private final int steps;
    private final long start = System.nanoTime();
    private TrainState state;
    private double last = Double.NaN;
    private long stepStart;

    /**
     * @param checkpoints where to save, null for nowhere
     * @throws IllegalArgumentException if a checkpoint to resume from is of another run
     */
    Run(
            Objective<T> objective,
            List<ParameterGroup> groups,
            TrainOptions options,
            World world,
            @Nullable Checkpoints checkpoints,
            List<T> data,
            @Nullable List<T> heldOut,
            TrainListener listener) {
        this.objective = objective;
        this.options = options;
        this.world = world;
        this.checkpoints = checkpoints;
        this.heldOut = heldOut;
        this.listener = listener;
        this.steps = options.steps(data.size());
        this.batches = new BatchOrder<>(data, options.batchSize(), options.seed());
        this.optimizer = new AdamW(groups, options.weightDecay(), options.eightBitState());
        try {
            state = resumed(TrainState.start(options.fingerprint(), objective.checksum(data)));
        } catch (IOException e) {
            optimizer.close();
            throw new UncheckedIOException("cannot read a checkpoint: " + e.getMessage(), e);
        } catch (RuntimeException e) {
            optimizer.close();
            throw e;
        }
        batches.skip(state.step());
        listener.onStart(state.step(), steps);
    }

    private TrainState resumed(TrainState fresh) throws IOException {
        Path newest = checkpoints == null || !options.resume() ? null : checkpoints.newest();
        if (newest == null) {
            return fresh;
        }
        TrainState found = Checkpoints.readState(newest);
        if (!found.options().equals(fresh.options())) {
            throw new IllegalArgumentException("cannot resume from " + newest + ": it was made with " + found.options()
                    + ", this run has " + fresh.options() + "; use the same options, or another output folder");
        }
        if (!found.data().equals(fresh.data())) {
            throw new IllegalArgumentException("cannot resume from " + newest
                    + ": the training data has changed since; use the same data, or another output folder");
        }
        Checkpoints.restore(newest, optimizer, found.step());
        objective.changed();
        return found;
    }

    TrainOptions options() {
        return options;
    }

    int step() {
        return state.step();
    }

    boolean done() {
        return state.step() >= steps || stopped();
    }

    private boolean stopped() {
        return options.patience() > 0 && state.withoutImprovement() >= options.patience();
    }

    /** Begins a step: gradients are zero. */
    List<T> begin() {
        stepStart = System.nanoTime();
        optimizer.zero();
        return batches.next();
    }

    /** The buffers of the gradients. */
    List<Tensor> gradients() {
        return optimizer.gradients();
    }

    /**
     * Ends a step whose gradients are there.
     *
     * @param sum the summed loss of the batch
     * @param weight what it is a sum over
     * @throws IllegalStateException if the loss or a gradient is no number; the parameters are untouched then
     */
    void end(double sum, long weight) {
        if (!Double.isFinite(sum)) {
            throw new IllegalStateException("the loss became " + sum + advice());
        }
        double rate = options.learningRate() * options.schedule().factor(state.step(), options.warmupSteps(), steps);
        double norm;
        try (PointerScope scope = new PointerScope()) {
            norm = optimizer.clip(options.maxGradNorm());
            if (!Double.isFinite(norm)) {
                throw new IllegalStateException("the norm of the gradients became " + norm + advice());
            }
            optimizer.step(rate);
            objective.changed();
        }
        last = sum / Math.max(1, weight);
        state = state.stepped(weight);
        double seconds = (System.nanoTime() - stepStart) / 1e9;
        listener.onStep(state.step(), steps, last, rate);
        listener.onReport(new StepReport(state.step(), steps, last, rate, norm, weight, seconds));
        try {
            if (heldOut != null
                    && options.evalEvery() > 0
                    && (state.step() % options.evalEvery() == 0 || state.step() == steps)) {
                evaluate(heldOut);
            }
            if (checkpoints != null
                    && world.rank() == 0
                    && (done() || options.saveEvery() > 0 && state.step() % options.saveEvery() == 0)) {
                listener.onCheckpoint(state.step(), checkpoints.write(state, optimizer, options.keepCheckpoints()));
            }
        } catch (IOException e) {
            throw new UncheckedIOException("cannot write a checkpoint: " + e.getMessage() + lastGood(), e);
        }
    }

    private void evaluate(List<T> data) throws IOException {
        double loss = Loop.mean(objective, data, options);
        objective.training(true);
        listener.onEvaluation(state.step(), loss);
        state = state.evaluated(loss, options.minImprovement());
        if (checkpoints != null && world.rank() == 0 && state.bestStep() == state.step()) {
            checkpoints.writeBest(state.step());
        }
    }

    private String advice() {
        return " at step " + (state.step() + 1) + ": lower the learning rate (" + options.learningRate()
                + ") or check the data" + lastGood();
    }

    /** The end of a message about a failure. */
    String lastGood() {
        try {
            Path newest = checkpoints == null ? null : checkpoints.newest();
            return newest == null ? "" : "; the last good checkpoint is " + newest;
        } catch (IOException e) {
            return "";
        }
    }

    TrainResult result() {
        try {
            Path best = checkpoints == null || Double.isInfinite(state.best()) ? null : checkpoints.best();
            double seconds = (System.nanoTime() - start) / 1e9;
            return new TrainResult(state.step(), state.tokens(), last, seconds, state.best(), best);
        } catch (IOException e) {
            throw new UncheckedIOException("cannot find the best adapter: " + e.getMessage(), e);
        }
    }

    @Override
    public void close() {
        optimizer.close();
    }
}
