package org.lora4j.cli;

import java.util.ArrayList;
import java.util.List;
import java.util.function.ToDoubleFunction;
import org.lora4j.combine.CombineReport;
import org.lora4j.combine.LayerReport;

/** What a combination, an extraction or a change of ranks made, as one HTML page. */
final class CombinePage {
    private static final int SPECTRA = 6;

    private static final String STYLE = """
            :root{color-scheme:light dark}
            body{font:15px/1.55 system-ui,sans-serif;max-width:980px;margin:2.5rem auto;padding:0 1.2rem}
            h1{font-size:1.5rem} h2{font-size:1.1rem;margin-top:2rem}
            table{border-collapse:collapse;width:100%;font-size:.85rem}
            th,td{padding:.2rem .6rem;text-align:right;font-variant-numeric:tabular-nums}
            th:first-child,td:first-child{text-align:left}
            th{border-bottom:2px solid #8886;font-weight:600} td{border-bottom:1px solid #8883} .faint{opacity:.7}
            """;

    private final CombineReport report;
    private final StringBuilder out = new StringBuilder();

    private CombinePage(CombineReport report) {
        this.report = report;
    }

    static String of(CombineReport report) {
        return new CombinePage(report).page();
    }

    private String page() {
        String title = "lora4j " + report.verb();
        out.append("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>")
                .append(title)
                .append("</title>\n<style>\n")
                .append(STYLE)
                .append("</style></head><body>\n<h1>")
                .append(title)
                .append("</h1>\n<p>")
                .append(escape(LayerTable.summary(report)))
                .append("</p>\n<p class=\"faint\">");
        for (int i = 0; i < report.sources().size(); i++) {
            String weight = i < report.weights().size() ? report.weights().get(i) + " x " : "";
            out.append(i > 0 ? "<br>" : "")
                    .append(escape(weight + report.sources().get(i)));
        }
        out.append("</p>\n");
        report.notes().forEach(note -> out.append("<p>").append(escape(note)).append("</p>\n"));
        plot("Rank", true, series("rank", LayerReport::rank));
        plot("Error: norm of what is left out, as a part of the whole", true, series("error", LayerTable::error));
        plot("Norm of the updates", true, norms());
        if (report.weights().size() > 1) {
            plot(
                    "Interference: cosines between the adapters' updates, and the part of elements with different signs",
                    false,
                    interference());
        }
        spectra();
        table();
        return out.append("</body></html>\n").toString();
    }

    private void plot(String title, boolean fromZero, List<LayerPlot.Series> series) {
        out.append("<h2>").append(title).append("</h2>\n").append(LayerPlot.svg("layer", series, fromZero));
    }

    private List<LayerPlot.Series> series(String name, ToDoubleFunction<LayerReport> value) {
        return List.of(line(name, value));
    }

    private LayerPlot.Series line(String name, ToDoubleFunction<LayerReport> value) {
        return new LayerPlot.Series(
                name, report.layers().stream().mapToDouble(value).toArray());
    }

    /** The place of an adapter among those that a layer has, or nothing. */
    private static double at(List<Double> values, int i) {
        return i < values.size() ? values.get(i) : Double.NaN;
    }

    private List<LayerPlot.Series> norms() {
        List<LayerPlot.Series> series = new ArrayList<>(series("result", LayerReport::norm));
        int adapters = Math.max(1, report.weights().size());
        for (int i = 0; i < adapters; i++) {
            int adapter = i;
            String name = report.weights().isEmpty() ? "before" : "adapter " + (i + 1);
            series.add(line(name, layer -> at(layer.norms(), adapter)));
        }
        return series;
    }

    private List<LayerPlot.Series> interference() {
        List<LayerPlot.Series> series = new ArrayList<>(series("sign conflict", LayerReport::signConflict));
        for (int i = 0; i < report.weights().size(); i++) {
            for (int j = i + 1; j < report.weights().size(); j++) {
                int one = i;
                int other = j;
                series.add(line(
                        "cosine " + (i + 1) + ", " + (j + 1),
                        layer -> one < layer.cosines().size()
                                ? at(layer.cosines().get(one), other)
                                : Double.NaN));
            }
        }
        return series;
    }

    private void spectra() {
        List<LayerPlot.Series> series = new ArrayList<>();
        List<LayerReport> layers = report.layers();
        int every = Math.max(1, (layers.size() + SPECTRA - 1) / SPECTRA);
        for (int i = 0; i < layers.size(); i += every) {
            double[] values = layers.get(i).values().stream()
                    .mapToDouble(value -> value > 0 ? Math.log10(value) : Double.NaN)
                    .toArray();
            if (values.length > 0) {
                series.add(new LayerPlot.Series("layer " + (i + 1), values));
            }
        }
        if (!series.isEmpty()) {
            out.append("<h2>Singular values, as powers of ten</h2>\n")
                    .append(LayerPlot.svg("component", series, false));
        }
    }

    private void table() {
        out.append("<h2>Layers</h2>\n<table>\n<tr>");
        LayerTable.header(report)
                .forEach(name -> out.append("<th>").append(name).append("</th>"));
        out.append("</tr>\n");
        for (LayerReport layer : report.layers()) {
            out.append("<tr>");
            LayerTable.cells(report, layer)
                    .forEach(cell -> out.append("<td>").append(escape(cell)).append("</td>"));
            out.append("</tr>\n");
        }
        out.append("</table>\n");
    }

    static String escape(String text) {
        return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;");
    }
}
