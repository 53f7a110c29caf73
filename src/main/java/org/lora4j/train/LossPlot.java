package org.lora4j.train;

import java.util.List;
import java.util.Locale;
import org.lora4j.train.LossCurve.Point;

/**
 * Draws loss curves as SVG, without scripts or fonts from elsewhere. A run has one colour: its batches as a faint line,
 * their running mean as a firm one, held-out losses as a dashed one with dots.
 */
public final class LossPlot {
    private static final int WIDTH = 800;
    private static final int HEIGHT = 390;
    private static final int LEFT = 52;
    private static final int RIGHT = 24;
    private static final int TOP = 28;
    private static final int BOTTOM = 84;
    private static final String[] COLOURS = {"#0b6bcb", "#c2570c", "#2e7d4f", "#7a4fc4", "#b3245f"};

    private final List<LossCurve> curves;
    private final StringBuilder out = new StringBuilder();
    private final double lastStep;
    private final double low;
    private final double high;
    private final double tick;

    private LossPlot(List<LossCurve> curves) {
        this.curves = curves;
        double last = 1;
        double min = Double.POSITIVE_INFINITY;
        double max = Double.NEGATIVE_INFINITY;
        for (LossCurve curve : curves) {
            for (List<Point> points : List.of(curve.steps(), curve.evaluations())) {
                for (Point point : points) {
                    last = Math.max(last, point.step());
                    min = Math.min(min, point.loss());
                    max = Math.max(max, point.loss());
                }
            }
        }
        if (min > max) {
            throw new IllegalArgumentException("the loss curves are empty: train before plotting");
        }
        lastStep = last;
        tick = niceStep((max - min) / 6);
        low = Math.floor(min / tick) * tick;
        high = Math.max(low + tick, Math.ceil(max / tick) * tick);
    }

    /**
     * An {@code <svg>} element for an HTML page.
     *
     * @param curves at least one, with at least one point
     */
    public static String svg(List<LossCurve> curves) {
        return new LossPlot(curves).draw();
    }

    /** A whole HTML page with one plot. */
    public static String page(String title, List<LossCurve> curves) {
        return """
                <!doctype html>
                <html lang="en"><head><meta charset="utf-8"><title>%1$s</title>
                <style>body{font:15px/1.5 system-ui,sans-serif;max-width:820px;margin:2rem auto;padding:0 1rem}</style>
                </head><body><h1>%1$s</h1>
                %2$s
                </body></html>
                """.formatted(escape(title), svg(curves));
    }

    private String draw() {
        add("<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"Loss by step\" ", WIDTH, HEIGHT);
        add("style=\"width:100%%;height:auto;font:12px system-ui,sans-serif\" fill=\"none\">\n");
        axes();
        for (int i = 0; i < curves.size(); i++) {
            curve(curves.get(i), COLOURS[i % COLOURS.length]);
        }
        legend();
        add("</svg>");
        return out.toString();
    }

    private void axes() {
        int decimals = (int) Math.max(0, Math.ceil(-Math.log10(tick) - 1e-9));
        for (int i = 0; low + i * tick <= high + tick / 2; i++) {
            double loss = low + i * tick;
            line(LEFT, y(loss), WIDTH - RIGHT, y(loss), "#8884", 1);
            text(LEFT - 8, y(loss) + 4, "end", String.format(Locale.ROOT, "%." + decimals + "f", loss));
        }
        double every = Math.max(1, niceStep(lastStep / 8));
        for (double step = 0; step <= lastStep; step += every) {
            line(x(step), y(low), x(step), y(low) + 5, "#888", 1);
            text(x(step), y(low) + 19, "middle", String.format(Locale.ROOT, "%.0f", step));
        }
        line(LEFT, y(low), WIDTH - RIGHT, y(low), "#888", 1);
        text((LEFT + WIDTH - RIGHT) / 2.0, y(low) + 38, "middle", "step");
        text(LEFT - 8, TOP - 12, "end", "loss");
    }

    private void curve(LossCurve curve, String colour) {
        polyline(curve.steps(), colour, "stroke-width=\"1\" stroke-opacity=\"0.28\"");
        polyline(smooth(curve.steps()), colour, "stroke-width=\"2\"");
        polyline(curve.evaluations(), colour, "stroke-width=\"1.5\" stroke-dasharray=\"5 4\"");
        for (Point point : curve.evaluations()) {
            add("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.2\" fill=\"%s\"/>\n", x(point.step()), y(point.loss()), colour);
        }
    }

    private void legend() {
        double left = LEFT;
        double y = HEIGHT - 14;
        for (int i = 0; i < curves.size(); i++) {
            String colour = COLOURS[i % COLOURS.length];
            line(left, y - 4, left + 22, y - 4, colour, 3);
            text(left + 28, y, "start", curves.get(i).name());
            left += 52 + 7.2 * curves.get(i).name().length();
        }
        text(WIDTH - RIGHT, y, "end", "line: training (running mean), dashed with dots: held out");
    }

    /** The running mean, over about a twentieth of the run, corrected for its start. */
    private static List<Point> smooth(List<Point> points) {
        double keep = 1 - 1 / Math.max(1, points.size() / 20.0);
        double[] state = new double[2];
        return points.stream()
                .map(p -> {
                    state[0] = keep * state[0] + (1 - keep) * p.loss();
                    state[1] = keep * state[1] + (1 - keep);
                    return new Point(p.step(), state[0] / state[1], p.learningRate());
                })
                .toList();
    }

    /** The smallest of 1, 2, 5 times a power of ten that is not below a number. */
    private static double niceStep(double atLeast) {
        if (!(atLeast > 0)) {
            return 1;
        }
        double power = Math.pow(10, Math.floor(Math.log10(atLeast)));
        for (double factor : new double[] {1, 2, 5}) {
            if (factor * power >= atLeast * (1 - 1e-9)) {
                return factor * power;
            }
        }
        return 10 * power;
    }

    private double x(double step) {
        return LEFT + step / lastStep * (WIDTH - LEFT - RIGHT);
    }

    private double y(double loss) {
        return TOP + (high - loss) / (high - low) * (HEIGHT - TOP - BOTTOM);
    }

    private void polyline(List<Point> points, String colour, String style) {
        if (points.isEmpty()) {
            return;
        }
        add("<polyline stroke=\"%s\" %s stroke-linejoin=\"round\" points=\"", colour, style);
        for (Point point : points) {
            add("%.1f,%.1f ", x(point.step()), y(point.loss()));
        }
        add("\"/>\n");
    }

    private void line(double x1, double y1, double x2, double y2, String colour, int width) {
        add("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" ", x1, y1, x2, y2);
        add("stroke=\"%s\" stroke-width=\"%d\"/>\n", colour, width);
    }

    private void text(double x, double y, String anchor, String content) {
        add("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" fill=\"currentColor\">", x, y, anchor);
        out.append(escape(content)).append("</text>\n");
    }

    private void add(String format, Object... arguments) {
        out.append(String.format(Locale.ROOT, format, arguments));
    }

    private static String escape(String text) {
        return text.replace("&", "&amp;")
                .replace("<", "&lt;")
                .replace(">", "&gt;")
                .replace("\"", "&quot;");
    }
}
