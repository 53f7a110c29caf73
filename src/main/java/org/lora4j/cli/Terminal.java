package org.lora4j.cli;

import java.io.PrintWriter;
import java.util.Locale;
import me.tongfei.progressbar.ProgressBar;
import me.tongfei.progressbar.ProgressBarBuilder;
import me.tongfei.progressbar.ProgressBarStyle;
import org.lora4j.train.TrainListener;

/** Where a verb prints: bars that move on a terminal, plain lines in a file or pipe. */
final class Terminal {
    private final PrintWriter out;
    private final boolean interactive;

    /** A bar in progress; close it when the work is done. */
    interface Bar extends AutoCloseable {
        void step(int done, String note);

        @Override
        void close();
    }

    /** A bar that shows nothing. */
    static final Bar SILENT = new Bar() {
        @Override
        public void step(int done, String note) {}

        @Override
        public void close() {}
    };

    /**
     * @param out receives all text
     * @param interactive whether a person watches, so that bars may redraw their line
     */
    Terminal(PrintWriter out, boolean interactive) {
        this.out = out;
        this.interactive = interactive;
    }

    /** Whether this process talks to a terminal: the launcher says so, as Java alone cannot tell. */
    static boolean attached() {
        return Boolean.getBoolean("lora4j.terminal");
    }

    void heading(int number, int of, String text) {
        out.printf(Locale.ROOT, "%n[%d/%d] %s%n", number, of, text);
        out.flush();
    }

    void line(String format, Object... arguments) {
        out.printf(Locale.ROOT, format + "%n", arguments);
        out.flush();
    }

    /** A progress bar over a number of steps. */
    Bar bar(String name, int steps) {
        return interactive ? new MovingBar(name, steps) : new Lines(name, steps);
    }

    /** Shows a training run in a bar. */
    static TrainListener listener(Bar bar) {
        return (step, steps, loss, rate) -> bar.step(step, String.format(Locale.ROOT, "loss %.3f", loss));
    }

    /** Redraws one line. */
    private static final class MovingBar implements Bar {
        private final ProgressBar bar;

        MovingBar(String name, int steps) {
            bar = new ProgressBarBuilder()
                    .setTaskName("  " + name)
                    .setInitialMax(steps)
                    .setStyle(ProgressBarStyle.ASCII)
                    .setUpdateIntervalMillis(200)
                    .build();
        }

        @Override
        public void step(int done, String note) {
            bar.stepTo(done).setExtraMessage(note);
        }

        @Override
        public void close() {
            bar.close();
        }
    }

    /** Prints a line at every fifth of the way. */
    private final class Lines implements Bar {
        private final String name;
        private final int steps;
        private int printed;

        Lines(String name, int steps) {
            this.name = name;
            this.steps = steps;
        }

        @Override
        public void step(int done, String note) {
            int fifths = done * 5 / Math.max(1, steps);
            if (fifths > printed) {
                printed = fifths;
                line("  %s %d/%d  %s", name, done, steps, note);
            }
        }

        @Override
        public void close() {}
    }
}
