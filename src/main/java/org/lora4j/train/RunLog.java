package org.lora4j.train;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import tools.jackson.core.JacksonException;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/**
 * Writes what a run does into its folder: {@code log.jsonl}, one object a step or evaluation; event files for TensorBoard in
 * {@code tensorboard/}; and {@code report.html}, a page with the curves. A run that is resumed goes on with the log and
 * forgets the lines of steps that are taken again.
 */
public final class RunLog implements TrainListener, AutoCloseable {
    private static final JsonMapper JSON = JsonMapper.builder().build();

    private final Path folder;
    private final LossCurve curve;
    private @Nullable EventFile events;

    /** @param name labels the curve */
    public RunLog(Path folder, String name) {
        this.folder = folder;
        this.curve = new LossCurve(name);
    }

    /** The losses, with those of the run that is resumed. */
    public LossCurve curve() {
        return curve;
    }

    private Path log() {
        return folder.resolve("log.jsonl");
    }

    @Override
    public void onStart(int step, int steps) {
        try {
            Files.createDirectories(folder);
            List<String> kept = new ArrayList<>();
            if (step > 0 && Files.exists(log())) {
                for (String line : Files.readAllLines(log())) {
                    if (replay(line, step)) {
                        kept.add(line);
                    }
                }
            }
            Files.write(log(), kept);
            events = new EventFile(
                    folder.resolve("tensorboard"),
                    System.currentTimeMillis() / 1000,
                    "lora4j." + ProcessHandle.current().pid());
        } catch (IOException e) {
            throw new UncheckedIOException("cannot write the log in " + folder + ": " + e.getMessage(), e);
        }
    }

    /** Whether a line is of a step up to one; adds it to the curve. The last line may be cut short by a kill. */
    private boolean replay(String line, int last) {
        try {
            JsonNode object = JSON.readTree(line);
            int step = object.path("step").asInt(Integer.MAX_VALUE);
            if (step > last) {
                return false;
            }
            if (object.has("held_out_loss")) {
                curve.onEvaluation(step, object.path("held_out_loss").asDouble());
            } else {
                curve.onStep(
                        step,
                        0,
                        object.path("loss").asDouble(),
                        object.path("lr").asDouble());
            }
            return true;
        } catch (JacksonException e) {
            return false;
        }
    }

    @Override
    public void onStep(int step, int steps, double loss, double learningRate) {
        curve.onStep(step, steps, loss, learningRate);
    }

    @Override
    public void onReport(StepReport report) {
        Map<String, Object> line = new LinkedHashMap<>();
        line.put("step", report.step());
        line.put("loss", report.loss());
        line.put("lr", report.learningRate());
        line.put("grad_norm", report.gradientNorm());
        line.put("tokens", report.tokens());
        line.put("seconds", report.seconds());
        append(line);
        scalar("train/loss", report.step(), report.loss());
        scalar("train/learning_rate", report.step(), report.learningRate());
        scalar("train/grad_norm", report.step(), report.gradientNorm());
        scalar("train/tokens_per_second", report.step(), report.tokens() / Math.max(1e-9, report.seconds()));
    }

    @Override
    public void onEvaluation(int step, double loss) {
        curve.onEvaluation(step, loss);
        Map<String, Object> line = new LinkedHashMap<>();
        line.put("step", step);
        line.put("held_out_loss", loss);
        append(line);
        scalar("eval/loss", step, loss);
        page();
    }

    @Override
    public void onCheckpoint(int step, Path checkpoint) {
        page();
    }

    private void append(Map<String, Object> line) {
        try {
            Files.writeString(
                    log(), JSON.writeValueAsString(line) + "\n", StandardOpenOption.CREATE, StandardOpenOption.APPEND);
        } catch (IOException e) {
            throw new UncheckedIOException("cannot write " + log() + ": " + e.getMessage(), e);
        }
    }

    private void scalar(String tag, int step, double value) {
        EventFile file = events;
        if (file != null) {
            try {
                file.scalar(tag, step, value, System.currentTimeMillis() / 1000.0);
            } catch (IOException e) {
                throw new UncheckedIOException("cannot write events for TensorBoard: " + e.getMessage(), e);
            }
        }
    }

    private void page() {
        if (curve.steps().isEmpty() && curve.evaluations().isEmpty()) {
            return;
        }
        try {
            Files.writeString(folder.resolve("report.html"), LossPlot.page(curve.name(), List.of(curve)));
        } catch (IOException e) {
            throw new UncheckedIOException("cannot write the report in " + folder + ": " + e.getMessage(), e);
        }
    }

    /** Writes the page a last time and ends the event file. */
    @Override
    public void close() {
        page();
        if (events != null) {
            try {
                events.close();
            } catch (IOException e) {
                throw new UncheckedIOException("cannot end the events for TensorBoard: " + e.getMessage(), e);
            }
        }
    }
}
