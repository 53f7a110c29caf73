package org.lora4j.train;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

/** The losses of one training run, as a {@link TrainListener} hears them. Not safe for use by several threads. */
public final class LossCurve implements TrainListener {
    private final String name;
    private final List<Point> steps = new ArrayList<>();
    private final List<Point> evaluations = new ArrayList<>();

    /**
     * A loss at a moment of the run.
     *
     * @param step steps taken
     * @param loss mean loss per token
     * @param learningRate the step's learning rate; 0 for an evaluation
     */
    public record Point(int step, double loss, double learningRate) {}

    /** An empty curve. The name labels it in a plot. */
    public LossCurve(String name) {
        this.name = name;
    }

    public String name() {
        return name;
    }

    /** The training losses, by step. */
    public List<Point> steps() {
        return List.copyOf(steps);
    }

    /** The held-out losses, by step. */
    public List<Point> evaluations() {
        return List.copyOf(evaluations);
    }

    @Override
    public void onStep(int step, int steps, double loss, double learningRate) {
        this.steps.add(new Point(step, loss, learningRate));
    }

    @Override
    public void onEvaluation(int step, double loss) {
        evaluations.add(new Point(step, loss, 0));
    }

    /**
     * Writes one JSON object a line: {@code {"step": 1, "loss": 4.2, "lr": 0.001}} for a step,
     * {@code {"step": 50, "held_out_loss": 3.9}} for an evaluation, training first.
     *
     * @throws IOException if the file cannot be written
     */
    public void writeJsonl(Path file) throws IOException {
        var lines = new ArrayList<String>();
        for (Point p : steps) {
            lines.add("{\"step\": " + p.step + ", \"loss\": " + p.loss + ", \"lr\": " + p.learningRate + "}");
        }
        for (Point p : evaluations) {
            lines.add("{\"step\": " + p.step + ", \"held_out_loss\": " + p.loss + "}");
        }
        Files.write(file, lines);
    }
}
