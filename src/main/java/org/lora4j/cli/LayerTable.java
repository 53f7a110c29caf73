package org.lora4j.cli;

import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import org.lora4j.combine.CombineReport;
import org.lora4j.combine.LayerReport;

/** What became of each layer as a table: of text, or the cells for a page. */
final class LayerTable {
    private LayerTable() {}

    static List<String> header(CombineReport report) {
        List<String> header = new ArrayList<>(List.of("layer", "rank", "scale", "norm", "energy kept", "error"));
        if (report.weights().size() > 1) {
            header.addAll(List.of("cosines", "sign conflict"));
        }
        return header;
    }

    static List<String> cells(CombineReport report, LayerReport layer) {
        List<String> cells = new ArrayList<>();
        cells.add(layer.path());
        cells.add(layer.ranks().isEmpty() ? "" + layer.rank() : ranks(layer) + " > " + layer.rank());
        cells.add(number(layer.scale(), "%.4g"));
        cells.add(number(layer.norm(), "%.4g"));
        cells.add(number(Math.min(1, layer.energy()), "%.6f"));
        cells.add(number(error(layer), "%.2e"));
        if (report.weights().size() > 1) {
            cells.add(cosines(layer));
            cells.add(number(layer.signConflict(), "%.2f"));
        }
        return cells;
    }

    /** The norm of what a layer leaves out, as a part of the whole. */
    static double error(LayerReport layer) {
        return Math.sqrt(Math.max(0, 1 - layer.energy()));
    }

    private static String ranks(LayerReport layer) {
        List<String> ranks = layer.ranks().stream().map(String::valueOf).toList();
        return String.join("+", ranks);
    }

    private static String cosines(LayerReport layer) {
        List<String> cosines = new ArrayList<>();
        for (int i = 0; i < layer.cosines().size(); i++) {
            for (int j = i + 1; j < layer.cosines().size(); j++) {
                cosines.add(number(layer.cosines().get(i).get(j), "%+.2f"));
            }
        }
        return String.join(" ", cosines);
    }

    /** The lines of the text table and a summary. */
    static List<String> lines(CombineReport report) {
        List<List<String>> rows = new ArrayList<>();
        rows.add(header(report));
        report.layers().forEach(layer -> rows.add(cells(report, layer)));
        int columns = rows.get(0).size();
        int[] widths = new int[columns];
        for (List<String> row : rows) {
            for (int i = 0; i < columns; i++) {
                widths[i] = Math.max(widths[i], row.get(i).length());
            }
        }
        List<String> lines = new ArrayList<>();
        for (List<String> row : rows) {
            StringBuilder line = new StringBuilder();
            for (int i = 0; i < columns; i++) {
                String pad = " ".repeat(widths[i] - row.get(i).length());
                line.append(i == 0 ? row.get(i) + pad : "  " + pad + row.get(i));
            }
            lines.add(line.toString().stripTrailing());
        }
        lines.add("");
        lines.add(summary(report));
        report.notes().forEach(note -> lines.add("note: " + note));
        return lines;
    }

    static String summary(CombineReport report) {
        return String.format(
                Locale.ROOT,
                "%s (%s): %d layers, %d ranks, %,d parameters, %.4f of the squared norm kept, %.1f s",
                report.verb(),
                report.how(),
                report.layers().size(),
                report.ranks(),
                report.parameters(),
                Math.min(1, report.energy()),
                report.seconds());
    }

    private static String number(double value, String format) {
        return String.format(Locale.ROOT, format, value);
    }
}
