package org.lora4j.cli;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import org.lora4j.train.LossCurve;
import org.lora4j.train.LossPlot;
import tools.jackson.databind.SerializationFeature;
import tools.jackson.databind.json.JsonMapper;

/** Writes a demo's summary as JSON for programs and as one HTML page for people. */
final class Report {
    private static final JsonMapper JSON =
            JsonMapper.builder().enable(SerializationFeature.INDENT_OUTPUT).build();

    private static final String STYLE = """
            :root{color-scheme:light dark}
            body{font:15px/1.55 system-ui,sans-serif;max-width:860px;margin:2.5rem auto;padding:0 1.2rem}
            h1{font-size:1.5rem} h2{font-size:1.1rem;margin-top:2rem}
            table{border-collapse:collapse;width:100%} th,td{padding:.3rem .7rem;text-align:left;vertical-align:top}
            th{border-bottom:2px solid #8886;font-weight:600} td{border-bottom:1px solid #8883}
            .n{text-align:right;font-variant-numeric:tabular-nums}
            .ok{color:#2e7d4f;font-weight:600} .failed{color:#c62828;font-weight:600} .faint{opacity:.65}
            """;

    private final Summary summary;
    private final List<LossCurve> curves;

    Report(Summary summary, List<LossCurve> curves) {
        this.summary = summary;
        this.curves = curves;
    }

    /** Writes summary.json, report.html and a {@code <name>.loss.jsonl} for each curve. */
    void write(Path folder) throws IOException {
        Files.writeString(folder.resolve("summary.json"), json());
        Files.writeString(folder.resolve("report.html"), html());
        for (LossCurve curve : curves) {
            curve.writeJsonl(folder.resolve(curve.name() + ".loss.jsonl"));
        }
    }

    private String json() {
        Map<String, Object> root = new LinkedHashMap<>();
        root.put("passed", summary.passed());
        root.put("facts", summary.facts);
        root.put("losses", summary.losses);
        root.put("checks", summary.checks);
        root.put("samples", summary.samples);
        root.put("seconds", summary.seconds);
        return JSON.writeValueAsString(root) + "\n";
    }

    private String html() {
        return """
                <!doctype html>
                <html lang="en"><head><meta charset="utf-8"><title>lora4j demo</title>
                <style>
                %s</style></head><body>
                <h1>lora4j demo</h1>
                <p class="faint">%s</p>
                <h2>Loss while training</h2>
                %s
                <h2>Held-out loss, nats per token</h2>
                %s<h2>Checks</h2>
                %s<h2>What they write</h2>
                %s<h2>Time</h2>
                %s</body></html>
                """.formatted(
                        STYLE,
                        escape(String.join(" · ", summary.facts.values())),
                        LossPlot.svg(curves),
                        losses(),
                        checks(),
                        samples(),
                        times());
    }

    private String losses() {
        List<String> tasks = summary.tasks();
        var table = new StringBuilder("<table>\n<tr><th>model</th>");
        tasks.forEach(
                task -> table.append("<th class=\"n\">").append(escape(task)).append("</th>"));
        table.append("</tr>\n");
        summary.losses.forEach((model, row) -> {
            table.append("<tr>").append(cell("", model));
            tasks.forEach(task -> table.append(cell("n", row.containsKey(task) ? number(row.get(task), 4) : "")));
            table.append("</tr>\n");
        });
        return table.append("</table>\n").toString();
    }

    private String checks() {
        var table = new StringBuilder("<table>\n");
        for (Summary.Check check : summary.checks) {
            table.append("<tr>")
                    .append(check.passed() ? cell("ok", "ok") : cell("failed", "FAILED"))
                    .append(cell("", check.name()))
                    .append(cell("faint", check.detail()))
                    .append("</tr>\n");
        }
        return table.append("</table>\n").toString();
    }

    private String samples() {
        var table = new StringBuilder("<table>\n<tr><th>prompt</th><th>model</th><th>text</th></tr>\n");
        String before = "";
        for (Summary.Sample sample : summary.samples) {
            String prompt = sample.prompt().strip();
            table.append("<tr>")
                    .append(cell("", prompt.equals(before) ? "" : prompt))
                    .append(cell("faint", sample.model()))
                    .append(cell("", sample.text().strip()))
                    .append("</tr>\n");
            before = prompt;
        }
        return table.append("</table>\n").toString();
    }

    private String times() {
        var table = new StringBuilder("<table>\n");
        summary.seconds.forEach((stage, time) -> table.append(time(stage, time)));
        return table.append(time("total", summary.totalSeconds()))
                .append("</table>\n")
                .toString();
    }

    private static String time(String stage, double seconds) {
        return "<tr>" + cell("", stage) + cell("n", number(seconds, 1) + " s") + "</tr>\n";
    }

    private static String cell(String style, String text) {
        String attribute = style.isEmpty() ? "" : " class=\"" + style + "\"";
        return "<td" + attribute + ">" + escape(text) + "</td>";
    }

    private static String number(double value, int decimals) {
        return String.format(Locale.ROOT, "%." + decimals + "f", value);
    }

    private static String escape(String text) {
        return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;");
    }
}
