package org.lora4j.cli;

import java.util.ArrayList;
import java.util.List;
import java.util.Locale;

/** Numbers by layer, or by rank, as an {@code <svg>} element: a line for each series. */
final class LayerPlot {
    private static final int WIDTH = 820;
    private static final int HEIGHT = 240;
    private static final int LEFT = 62;
    private static final int BOTTOM = 42;
    private static final int TOP = 14;
    private static final String[] COLOURS = {"#2f6fb3", "#d1662b", "#3c8f57", "#8f4fa8", "#b08a1e", "#4a4a4a"};

    /** A named line; values that are not numbers are left out. */
    record Series(String name, double[] values) {}

    private final StringBuilder out = new StringBuilder();
    private final double low;
    private final double high;
    private final int count;

    private LayerPlot(List<Series> series, boolean fromZero) {
        double min = fromZero ? 0 : Double.POSITIVE_INFINITY;
        double max = Double.NEGATIVE_INFINITY;
        int longest = 1;
        for (Series each : series) {
            longest = Math.max(longest, each.values().length);
            for (double value : each.values()) {
                if (Double.isFinite(value)) {
                    min = Math.min(min, value);
                    max = Math.max(max, value);
                }
            }
        }
        low = Double.isFinite(min) ? min : 0;
        high = max > low ? max : low + 1;
        count = longest;
    }

    /**
     * Draws a plot.
     *
     * @param across what the horizontal axis counts
     * @param fromZero whether the vertical axis begins at zero
     */
    static String svg(String across, List<Series> series, boolean fromZero) {
        return new LayerPlot(series, fromZero).draw(across, series);
    }

    private String draw(String across, List<Series> series) {
        add(
                "<svg viewBox=\"0 0 %d %d\" role=\"img\" style=\"width:100%%;font:11px system-ui,sans-serif\">",
                WIDTH, HEIGHT);
        for (int i = 0; i <= 4; i++) {
            double value = low + (high - low) * i / 4;
            double y = y(value);
            add("<path d=\"M%d %.1fH%d\" stroke=\"#8884\"/>", LEFT, y, WIDTH - 10, y);
            add(
                    "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\" fill=\"currentColor\">%.3g</text>",
                    LEFT - 6, y + 4, value);
        }
        int every = Math.max(1, count / 12);
        for (int i = 0; i < count; i += every) {
            add(
                    "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\" fill=\"currentColor\">%d</text>",
                    x(i), HEIGHT - BOTTOM + 15, i + 1);
        }
        for (int i = 0; i < series.size(); i++) {
            line(series.get(i).values(), COLOURS[i % COLOURS.length]);
        }
        double x = LEFT;
        for (int i = 0; i < series.size(); i++) {
            String name = CombinePage.escape(series.get(i).name());
            add(
                    "<rect x=\"%.1f\" y=\"%d\" width=\"14\" height=\"3\" fill=\"%s\"/>",
                    x, HEIGHT - 10, COLOURS[i % COLOURS.length]);
            add("<text x=\"%.1f\" y=\"%d\" fill=\"currentColor\">%s</text>", x + 19, HEIGHT - 5, name);
            x += 36 + 6.5 * series.get(i).name().length();
        }
        add(
                "<text x=\"%d\" y=\"%d\" text-anchor=\"end\" fill=\"currentColor\">%s</text>",
                WIDTH - 10, HEIGHT - 5, across);
        return out.append("</svg>\n").toString();
    }

    private void line(double[] values, String colour) {
        List<String> points = new ArrayList<>();
        for (int i = 0; i < values.length; i++) {
            if (Double.isFinite(values[i])) {
                points.add(String.format(Locale.ROOT, "%.1f,%.1f", x(i), y(values[i])));
            }
        }
        add(
                "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"1.6\" points=\"%s\"/>",
                colour, String.join(" ", points));
        if (points.size() <= 60) {
            for (String point : points) {
                String[] at = point.split(",", 2);
                add("<circle cx=\"%s\" cy=\"%s\" r=\"2.4\" fill=\"%s\"/>", at[0], at[1], colour);
            }
        }
    }

    private double x(int i) {
        return LEFT + (WIDTH - 10.0 - LEFT) * (count == 1 ? 0.5 : i / (count - 1.0));
    }

    private double y(double value) {
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (value - low) / (high - low);
    }

    private void add(String format, Object... values) {
        out.append(String.format(Locale.ROOT, format, values));
    }
}
