package org.lora4j.train;

import java.util.function.DoubleSupplier;

/** Says what to lower when memory runs out. */
final class Memory {
    private Memory() {}

    /** Runs a pass over some examples. */
    static double explained(Run<?> run, int examples, DoubleSupplier pass) {
        try {
            return pass.getAsDouble();
        } catch (OutOfMemoryError | RuntimeException e) {
            if (!isShortage(e)) {
                throw e;
            }
            TrainOptions options = run.options();
            throw new IllegalStateException(
                    "out of memory at step " + (run.step() + 1) + " with " + examples + " examples of up to "
                            + options.maxLength() + " tokens in a pass (" + firstLine(e) + "): raise accumulation ("
                            + options.accumulation() + ") or lower batchSize (" + options.batchSize()
                            + ") or maxLength" + run.lastGood(),
                    e);
        }
    }

    static boolean isShortage(Throwable e) {
        String message = String.valueOf(e.getMessage());
        return e instanceof OutOfMemoryError
                || message.contains("out of memory")
                || message.contains("not enough memory")
                || message.contains("can't allocate memory");
    }

    static String firstLine(Throwable e) {
        return String.valueOf(e.getMessage()).lines().findFirst().orElse("");
    }
}
