package org.lora4j.train;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.jspecify.annotations.Nullable;
import org.lora4j.layer.LivePasses;

/** The steps of a run: batches, gradients, optimizer, evaluation, checkpoints. */
final class Loop<T> {
    private final Objective<T> objective;
    private final List<ParameterGroup> groups;
    private final TrainOptions options;
    private final World world;
    private final @Nullable Checkpoints checkpoints;

    /** @param checkpoints where to save, null for nowhere */
    Loop(
            Objective<T> objective,
            List<ParameterGroup> groups,
            TrainOptions options,
            World world,
            @Nullable Checkpoints checkpoints) {
        this.objective = objective;
        this.groups = groups;
        this.options = options;
        this.world = world;
        this.checkpoints = checkpoints;
        if (options.batchSize() % (options.accumulation() * world.size()) != 0) {
            throw new IllegalArgumentException("TrainOptions.batchSize = " + options.batchSize()
                    + ": must be a multiple of"
                    + " accumulation (" + options.accumulation() + ") times the number of processes (" + world.size()
                    + ")");
        }
    }

    /** The seed of one step on one process. */
    static long seed(long seed, int step, int rank) {
        long z = seed * 0x9E3779B97F4A7C15L + step * 0xBF58476D1CE4E5B9L + rank * 0x94D049BB133111EBL;
        z = (z ^ (z >>> 30)) * 0xBF58476D1CE4E5B9L;
        z = (z ^ (z >>> 27)) * 0x94D049BB133111EBL;
        return z ^ (z >>> 31);
    }

    TrainResult run(List<T> data, @Nullable List<T> heldOut, TrainListener listener) {
        long start = System.nanoTime();
        int steps = options.steps(data.size());
        var batches = new BatchOrder<>(data, options.batchSize(), options.seed());
        double last = Double.NaN;
        objective.training(true);
        try (AdamW optimizer = new AdamW(groups, options.weightDecay(), options.eightBitState())) {
            TrainState state = resumed(TrainState.start(options.fingerprint(), objective.checksum(data)), optimizer);
            batches.skip(state.step());
            listener.onStart(state.step(), steps);
            while (state.step() < steps && !stopped(state)) {
                StepReport report = step(batches.next(), optimizer, state, steps);
                last = report.loss();
                state = state.stepped(report.tokens());
                listener.onStep(report.step(), steps, report.loss(), report.learningRate());
                listener.onReport(report);
                if (heldOut != null && evaluateAfter(state.step(), steps)) {
                    state = evaluated(state, heldOut, listener);
                }
                boolean end = state.step() == steps || stopped(state);
                if (end || options.saveEvery() > 0 && state.step() % options.saveEvery() == 0) {
                    save(state, optimizer, listener);
                }
            }
            return new TrainResult(state.step(), state.tokens(), last, (System.nanoTime() - start) / 1e9);
        } catch (IOException e) {
            throw new UncheckedIOException("cannot read or write a checkpoint: " + e.getMessage(), e);
        } finally {
            LivePasses.release();
            objective.training(false);
        }
    }

    private StepReport step(List<T> batch, AdamW optimizer, TrainState state, int steps) {
        long start = System.nanoTime();
        double rate = options.learningRate() * options.schedule().factor(state.step(), options.warmupSteps(), steps);
        long weight = objective.weight(batch);
        double sum;
        double norm;
        try (PointerScope scope = new PointerScope()) {
            torch.manual_seed(seed(options.seed(), state.step(), world.rank()));
            optimizer.zero();
            sum = gradients(batch, weight, optimizer, state);
            norm = optimizer.clip(options.maxGradNorm());
            if (!Double.isFinite(norm)) {
                throw new IllegalStateException("the gradients became " + norm + advice(state));
            }
            optimizer.step(rate);
        } finally {
            LivePasses.release();
        }
        double seconds = (System.nanoTime() - start) / 1e9;
        return new StepReport(state.step() + 1, steps, sum / Math.max(1, weight), rate, norm, weight, seconds);
    }

    /** The summed loss of the whole batch, with gradients of its mean, on all processes. */
    private double gradients(List<T> batch, long weight, AdamW optimizer, TrainState state) {
        List<T> own = new ArrayList<>();
        for (int i = world.rank(); i < batch.size(); i += world.size()) {
            own.add(batch.get(i));
        }
        double sum = 0;
        int size = options.batchSize() / options.accumulation() / world.size();
        for (int from = 0; from < own.size(); from += size) {
            List<T> part = own.subList(from, Math.min(from + size, own.size()));
            if (objective.weight(part) > 0) {
                sum += backward(part, 1.0 / weight, state);
            }
            LivePasses.release();
        }
        if (world.size() > 1) {
            Tensor total = Tensor.create(new double[] {sum});
            List<Tensor> tensors = new ArrayList<>(optimizer.gradients());
            tensors.add(total);
            try {
                world.sum(tensors);
            } catch (RuntimeException e) {
                throw new IllegalStateException(
                        "another process of this run is gone at step " + (state.step() + 1) + " (" + firstLine(e) + ")"
                                + lastGood(),
                        e);
            }
            sum = total.item_double();
        }
        if (!Double.isFinite(sum)) {
            throw new IllegalStateException("the loss became " + sum + advice(state));
        }
        return sum;
    }

    private double backward(List<T> part, double scale, TrainState state) {
        try (PointerScope scope = new PointerScope()) {
            return objective.backward(part, scale);
        } catch (OutOfMemoryError | RuntimeException e) {
            String message = String.valueOf(e.getMessage());
            if (e instanceof OutOfMemoryError
                    || message.contains("out of memory")
                    || message.contains("can't allocate memory")) {
                throw new IllegalStateException(
                        "out of memory at step " + (state.step() + 1) + " with " + part.size()
                                + " examples of up to " + options.maxLength() + " tokens in a pass (" + firstLine(e)
                                + "): raise accumulation (" + options.accumulation() + ") or lower batchSize ("
                                + options.batchSize() + ") or maxLength" + lastGood(),
                        e);
            }
            throw e;
        }
    }

    private static String firstLine(Throwable e) {
        return String.valueOf(e.getMessage()).lines().findFirst().orElse("");
    }

    private String advice(TrainState state) {
        return " at step " + (state.step() + 1) + ": lower the learning rate (" + options.learningRate()
                + ") or check the data" + lastGood();
    }

    private String lastGood() {
        try {
            Path newest = checkpoints == null ? null : checkpoints.newest();
            return newest == null ? "" : "; the last good checkpoint is " + newest;
        } catch (IOException e) {
            return "";
        }
    }

    private boolean stopped(TrainState state) {
        return options.patience() > 0 && state.withoutImprovement() >= options.patience();
    }

    private boolean evaluateAfter(int step, int steps) {
        return options.evalEvery() > 0 && (step % options.evalEvery() == 0 || step == steps);
    }

    private TrainState evaluated(TrainState state, List<T> heldOut, TrainListener listener) throws IOException {
        double loss = mean(objective, heldOut, options);
        objective.training(true);
        listener.onEvaluation(state.step(), loss);
        TrainState next = state.evaluated(loss, options.minImprovement());
        if (checkpoints != null && world.rank() == 0 && next.bestStep() == next.step()) {
            checkpoints.writeBest(next.step());
        }
        return next;
    }

    /** The mean loss of data. */
    static <T> double mean(Objective<T> objective, List<T> data, TrainOptions options) {
        objective.training(false);
        double sum = 0;
        long weight = 0;
        int size = Math.max(1, options.batchSize() / options.accumulation());
        for (int from = 0; from < data.size(); from += size) {
            List<T> part = data.subList(from, Math.min(from + size, data.size()));
            long own = objective.weight(part);
            if (own > 0) {
                sum += objective.value(part);
                weight += own;
            }
        }
        if (weight == 0) {
            throw new IllegalArgumentException("no example has a completion token within maxLength = "
                    + options.maxLength() + ": raise it or shorten the prompts");
        }
        return sum / weight;
    }

    private void save(TrainState state, AdamW optimizer, TrainListener listener) throws IOException {
        if (checkpoints != null && world.rank() == 0) {
            listener.onCheckpoint(state.step(), checkpoints.write(state, optimizer, options.keepCheckpoints()));
        }
    }

    private TrainState resumed(TrainState fresh, AdamW optimizer) throws IOException {
        Path newest = checkpoints == null || !options.resume() ? null : checkpoints.newest();
        if (newest == null) {
            return fresh;
        }
        TrainState state = Checkpoints.readState(newest);
        if (!state.options().equals(fresh.options())) {
            throw new IllegalArgumentException("cannot resume from " + newest + ": it was made with " + state.options()
                    + ", this run has " + fresh.options() + "; use the same options, or another output folder");
        }
        if (!state.data().equals(fresh.data())) {
            throw new IllegalArgumentException("cannot resume from " + newest
                    + ": the training data has changed since; use the same data, or another output folder");
        }
        Checkpoints.restore(newest, optimizer, state.step());
        return state;
    }
}
