package org.lora4j.train;

import java.nio.file.Path;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * How to train: immutable, checked when built.
 *
 * <pre>{@code
 * TrainOptions options = TrainOptions.builder().steps(200).batchSize(16).learningRate(2e-3).build();
 * }</pre>
 */
public final class TrainOptions {
    private final int steps;
    private final int epochs;
    private final int batchSize;
    private final int maxLength;
    private final double learningRate;
    private final int warmupSteps;
    private final Schedule schedule;
    private final double weightDecay;
    private final double maxGradNorm;
    private final int evalEvery;
    private final long seed;
    private final int accumulation;
    private final double loraPlusRatio;
    private final boolean eightBitState;
    private final boolean packing;
    private final @Nullable Path output;
    private final int saveEvery;
    private final int keepCheckpoints;
    private final int patience;
    private final double minImprovement;
    private final boolean resume;

    private TrainOptions(Builder b) {
        require(
                (b.steps > 0) != (b.epochs > 0),
                "steps, epochs",
                b.steps + ", " + b.epochs,
                "set exactly one of them, to 1 or more");
        require(b.batchSize >= 1, "batchSize", b.batchSize, "must be 1 or more");
        require(b.maxLength >= 2, "maxLength", b.maxLength, "must be 2 tokens or more");
        require(positive(b.learningRate), "learningRate", b.learningRate, "must be a number above 0");
        require(b.warmupSteps >= 0, "warmupSteps", b.warmupSteps, "must be 0 or more");
        require(
                b.steps == 0 || b.warmupSteps <= b.steps,
                "warmupSteps",
                b.warmupSteps,
                "must not exceed steps, which is " + b.steps);
        require(b.weightDecay == 0 || positive(b.weightDecay), "weightDecay", b.weightDecay, "must be 0 or more");
        require(
                positive(b.maxGradNorm) || b.maxGradNorm == Double.POSITIVE_INFINITY,
                "maxGradNorm",
                b.maxGradNorm,
                "must be above 0; infinity switches clipping off");
        require(b.evalEvery >= 0, "evalEvery", b.evalEvery, "must be 0 (never) or a number of steps");
        require(
                b.accumulation >= 1 && b.batchSize % b.accumulation == 0,
                "accumulation",
                b.accumulation,
                "must divide batchSize, which is " + b.batchSize);
        require(positive(b.loraPlusRatio), "loraPlusRatio", b.loraPlusRatio, "must be a number above 0; 1 is no LoRA+");
        require(b.saveEvery >= 0, "saveEvery", b.saveEvery, "must be 0 (only at the end) or a number of steps");
        require(b.saveEvery == 0 || b.output != null, "saveEvery", b.saveEvery, "needs output, the folder to save to");
        require(!b.resume || b.output != null, "resume", true, "needs output, the folder with the checkpoints");
        require(b.keepCheckpoints >= 1, "keepCheckpoints", b.keepCheckpoints, "must be 1 or more");
        require(b.patience >= 0, "patience", b.patience, "must be 0 (never stop early) or a number of evaluations");
        require(b.patience == 0 || b.evalEvery > 0, "patience", b.patience, "needs evalEvery, which is 0");
        require(
                b.minImprovement >= 0 && Double.isFinite(b.minImprovement),
                "minImprovement",
                b.minImprovement,
                "must be 0 or more");
        steps = b.steps;
        epochs = b.epochs;
        batchSize = b.batchSize;
        maxLength = b.maxLength;
        learningRate = b.learningRate;
        warmupSteps = b.warmupSteps;
        schedule = Objects.requireNonNull(b.schedule, "schedule");
        weightDecay = b.weightDecay;
        maxGradNorm = b.maxGradNorm;
        evalEvery = b.evalEvery;
        seed = b.seed;
        accumulation = b.accumulation;
        loraPlusRatio = b.loraPlusRatio;
        eightBitState = b.eightBitState;
        packing = b.packing;
        output = b.output;
        saveEvery = b.saveEvery;
        keepCheckpoints = b.keepCheckpoints;
        patience = b.patience;
        minImprovement = b.minImprovement;
        resume = b.resume;
    }

    /** Options with their defaults; steps or epochs must still be set. */
    public static Builder builder() {
        return new Builder();
    }

    /** The optimiser steps for a number of examples. */
    public int steps(int examples) {
        return steps > 0 ? steps : Math.multiplyExact(epochs, (examples + batchSize - 1) / batchSize);
    }

    public int batchSize() {
        return batchSize;
    }

    public int maxLength() {
        return maxLength;
    }

    public double learningRate() {
        return learningRate;
    }

    public int warmupSteps() {
        return warmupSteps;
    }

    public Schedule schedule() {
        return schedule;
    }

    public double weightDecay() {
        return weightDecay;
    }

    public double maxGradNorm() {
        return maxGradNorm;
    }

    public int evalEvery() {
        return evalEvery;
    }

    public long seed() {
        return seed;
    }

    public int accumulation() {
        return accumulation;
    }

    public double loraPlusRatio() {
        return loraPlusRatio;
    }

    public boolean eightBitState() {
        return eightBitState;
    }

    public boolean packing() {
        return packing;
    }

    public @Nullable Path output() {
        return output;
    }

    public int saveEvery() {
        return saveEvery;
    }

    public int keepCheckpoints() {
        return keepCheckpoints;
    }

    public int patience() {
        return patience;
    }

    public double minImprovement() {
        return minImprovement;
    }

    public boolean resume() {
        return resume;
    }

    /** What decides the parameters a run ends with; a checkpoint of other values cannot be resumed. */
    String fingerprint() {
        return "steps=" + steps + " epochs=" + epochs + " batchSize=" + batchSize + " accumulation=" + accumulation
                + " maxLength=" + maxLength + " learningRate=" + learningRate + " warmupSteps=" + warmupSteps
                + " schedule=" + schedule + " weightDecay=" + weightDecay + " maxGradNorm=" + maxGradNorm + " seed="
                + seed + " loraPlusRatio=" + loraPlusRatio + " eightBitState=" + eightBitState + " packing=" + packing;
    }

    private static boolean positive(double value) {
        return value > 0 && Double.isFinite(value);
    }

    private static void require(boolean holds, String field, Object value, String rule) {
        if (!holds) {
            throw new IllegalArgumentException("TrainOptions." + field + " = " + value + ": " + rule);
        }
    }

    /** Collects options. */
    public static final class Builder {
        private int steps;
        private int epochs;
        private int batchSize = 8;
        private int maxLength = 512;
        private double learningRate = 1e-3;
        private int warmupSteps;
        private Schedule schedule = Schedule.LINEAR;
        private double weightDecay;
        private double maxGradNorm = 1;
        private int evalEvery;
        private long seed;
        private int accumulation = 1;
        private double loraPlusRatio = 1;
        private boolean eightBitState;
        private boolean packing;
        private @Nullable Path output;
        private int saveEvery;
        private int keepCheckpoints = 2;
        private int patience;
        private double minImprovement;
        private boolean resume;

        private Builder() {}

        /** Optimiser steps; the data is repeated as often as needed. Excludes epochs. */
        public Builder steps(int steps) {
            this.steps = steps;
            return this;
        }

        /** Passes over the data. Excludes steps. */
        public Builder epochs(int epochs) {
            this.epochs = epochs;
            return this;
        }

        /** Examples per step. Default 8. */
        public Builder batchSize(int batchSize) {
            this.batchSize = batchSize;
            return this;
        }

        /** Tokens after which an example is cut. Default 512. */
        public Builder maxLength(int maxLength) {
            this.maxLength = maxLength;
            return this;
        }

        /** The peak learning rate. Default 0.001. */
        public Builder learningRate(double learningRate) {
            this.learningRate = learningRate;
            return this;
        }

        /** Steps of a linear rise of the learning rate from 0. Default 0. */
        public Builder warmupSteps(int warmupSteps) {
            this.warmupSteps = warmupSteps;
            return this;
        }

        /** What follows the warm-up. Default linear decay. */
        public Builder schedule(Schedule schedule) {
            this.schedule = schedule;
            return this;
        }

        /** AdamW's decoupled weight decay. Default 0. */
        public Builder weightDecay(double weightDecay) {
            this.weightDecay = weightDecay;
            return this;
        }

        /** The norm to which larger gradients are scaled down, over all parameters. Default 1. */
        public Builder maxGradNorm(double maxGradNorm) {
            this.maxGradNorm = maxGradNorm;
            return this;
        }

        /** Evaluate the held-out data every so many steps. Default 0: never. */
        public Builder evalEvery(int evalEvery) {
            this.evalEvery = evalEvery;
            return this;
        }

        /** Seeds the order of the examples and LibTorch's generator. Default 0. */
        public Builder seed(long seed) {
            this.seed = seed;
            return this;
        }

        /** Passes into which a step's batch is split, to need less memory. Default 1. */
        public Builder accumulation(int accumulation) {
            this.accumulation = accumulation;
            return this;
        }

        /** How many times as fast as A the factor B learns (LoRA+). Default 1. */
        public Builder loraPlusRatio(double loraPlusRatio) {
            this.loraPlusRatio = loraPlusRatio;
            return this;
        }

        /** Keep AdamW's moments in 8 bits. Default false. */
        public Builder eightBitState(boolean eightBitState) {
            this.eightBitState = eightBitState;
            return this;
        }

        /** Put several examples into one row of up to maxLength tokens, where they do not see each other. Default false. */
        public Builder packing(boolean packing) {
            this.packing = packing;
            return this;
        }

        /** The folder for checkpoints, logs and the adapter. Default none: nothing is written. */
        public Builder output(@Nullable Path output) {
            this.output = output;
            return this;
        }

        /** Write a checkpoint every so many steps. Default 0: only at the end. */
        public Builder saveEvery(int saveEvery) {
            this.saveEvery = saveEvery;
            return this;
        }

        /** How many of the newest checkpoints to keep. Default 2. */
        public Builder keepCheckpoints(int keepCheckpoints) {
            this.keepCheckpoints = keepCheckpoints;
            return this;
        }

        /** Stop after so many evaluations in a row without a lower loss. Default 0: never. */
        public Builder patience(int patience) {
            this.patience = patience;
            return this;
        }

        /** By how much an evaluation must be lower to count as better. Default 0. */
        public Builder minImprovement(double minImprovement) {
            this.minImprovement = minImprovement;
            return this;
        }

        /** Go on from the newest checkpoint in output, if there is one. Default false. */
        public Builder resume(boolean resume) {
            this.resume = resume;
            return this;
        }

        /**
         * The options.
         *
         * @throws IllegalArgumentException naming the field, its value and the rule it breaks
         */
        public TrainOptions build() {
            return new TrainOptions(this);
        }
    }
}
