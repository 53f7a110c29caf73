package org.lora4j.cli;

import java.io.PrintWriter;
import java.util.Locale;
import me.tongfei.progressbar.ProgressBar;
import me.tongfei.progressbar.ProgressBarBuilder;
import me.tongfei.progressbar.ProgressBarStyle;
import org.jspecify.annotations.Nullable;
import org.lora4j.merge.MergeProgress;

/** Shows bytes done, bytes a second and the time left: in a line that moves on a terminal, nothing in a file or pipe. */
final class ByteBar implements MergeProgress, AutoCloseable {
    private final @Nullable ProgressBar bar;
    private final long begin = System.nanoTime();
    private long bytes;

    ByteBar(String name, boolean shown) {
        this.bar = shown
                ? new ProgressBarBuilder()
                        .setTaskName(name)
                        .setInitialMax(0)
                        .setUnit(" MB", 1_000_000)
                        .setStyle(ProgressBarStyle.ASCII)
                        .setUpdateIntervalMillis(200)
                        .showSpeed()
                        .build()
                : null;
    }

    @Override
    public void advance(long done, long total, String tensor) {
        bytes = done;
        if (bar != null) {
            bar.maxHint(total);
            bar.stepTo(done);
            bar.setExtraMessage(tensor);
        }
    }

    double seconds() {
        return (System.nanoTime() - begin) / 1e9;
    }

    /** One line for the end. */
    void summary(PrintWriter out, String what) {
        double seconds = seconds();
        out.printf(Locale.ROOT, "%s in %.1f s, %.0f MB/s%n", what, seconds, bytes / 1e6 / seconds);
        out.flush();
    }

    @Override
    public void close() {
        if (bar != null) {
            bar.close();
        }
    }
}
