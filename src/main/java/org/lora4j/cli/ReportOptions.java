package org.lora4j.cli;

import java.io.IOException;
import java.io.PrintWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import org.lora4j.combine.CombineReport;
import org.lora4j.combine.LayerListener;
import picocli.CommandLine.Option;
import tools.jackson.databind.SerializationFeature;
import tools.jackson.databind.json.JsonMapper;

/** Where a verb on adapters writes its adapter and what it found. */
final class ReportOptions {
    private static final JsonMapper JSON =
            JsonMapper.builder().enable(SerializationFeature.INDENT_OUTPUT).build();

    @Option(
            names = "--out",
            paramLabel = "DIR",
            required = true,
            description = "Folder of the new adapter; it must hold none")
    private Path out = Path.of("");

    @Option(names = "--json", paramLabel = "FILE", description = "Write what is printed, and more, as JSON")
    private @Nullable Path json;

    @Option(names = "--html", paramLabel = "FILE", description = "Write it as one HTML page with plots")
    private @Nullable Path html;

    Path out() {
        return out;
    }

    /** A bar that shows how far the work is. */
    static LayerListener listener(PrintWriter writer, String verb) {
        Terminal terminal = new Terminal(writer, Terminal.attached());
        Terminal.Bar[] bar = new Terminal.Bar[1];
        return (done, total, path) -> {
            Terminal.Bar now = bar[0] == null ? terminal.bar(verb, total) : bar[0];
            bar[0] = now;
            now.step(done, path);
            if (done == total) {
                now.close();
            }
        };
    }

    /** Prints the table and writes the files that were asked for. */
    void report(CombineReport report, PrintWriter writer) throws IOException {
        LayerTable.lines(report).forEach(writer::println);
        writer.println("adapter in " + out);
        if (json != null) {
            Files.writeString(json, json(report));
            writer.println("numbers in " + json);
        }
        if (html != null) {
            Files.writeString(html, CombinePage.of(report));
            writer.println("plots in " + html);
        }
        writer.flush();
    }

    private static String json(CombineReport report) {
        Map<String, Object> root = new LinkedHashMap<>();
        root.put("verb", report.verb());
        root.put("sources", report.sources());
        root.put("weights", report.weights());
        root.put("how", report.how());
        root.put("energy", report.energy());
        root.put("ranks", report.ranks());
        root.put("parameters", report.parameters());
        root.put("seconds", report.seconds());
        root.put("notes", report.notes());
        root.put("layers", report.layers());
        return JSON.writeValueAsString(root) + "\n";
    }
}
