package org.lora4j.cli;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;

/** What a demo run found: losses, checks, sample texts and times. */
final class Summary {
    final Map<String, String> facts = new LinkedHashMap<>();
    final Map<String, Map<String, Double>> losses = new LinkedHashMap<>();
    final List<Check> checks = new ArrayList<>();
    final List<Sample> samples = new ArrayList<>();
    final Map<String, Double> seconds = new LinkedHashMap<>();

    /**
     * Something that must hold.
     *
     * @param name what was checked
     * @param passed whether it holds
     * @param detail what was measured, against which bar
     */
    record Check(String name, boolean passed, String detail) {}

    /**
     * What a model wrote.
     *
     * @param model the adapter's name, or that of the base
     * @param prompt what it was given
     * @param text what it wrote
     */
    record Sample(String model, String prompt, String text) {}

    /** Notes the held-out loss of a model on a task, nats per token. */
    void loss(String model, String task, double loss) {
        losses.computeIfAbsent(model, m -> new LinkedHashMap<>()).put(task, loss);
    }

    double loss(String model, String task) {
        Double loss = losses.getOrDefault(model, Map.of()).get(task);
        if (loss == null) {
            throw new IllegalStateException("no loss of \"" + model + "\" on \"" + task + "\" was measured");
        }
        return loss;
    }

    /** The tasks with losses, in the order they were first measured. */
    List<String> tasks() {
        return losses.values().stream()
                .flatMap(row -> row.keySet().stream())
                .distinct()
                .toList();
    }

    boolean passed() {
        return checks.stream().allMatch(Check::passed);
    }

    double totalSeconds() {
        return seconds.values().stream().mapToDouble(Double::doubleValue).sum();
    }

    /** The losses as a table of text, a line each. */
    List<String> lossTable() {
        List<String> tasks = tasks();
        var lines = new ArrayList<String>();
        var header = new StringBuilder(String.format("%-34s", "held-out loss (nats per token)"));
        tasks.forEach(task -> header.append(String.format("%14s", task)));
        lines.add(header.toString());
        losses.forEach((model, row) -> {
            var line = new StringBuilder(String.format("%-34s", model));
            for (String task : tasks) {
                Double loss = row.get(task);
                line.append(loss == null ? " ".repeat(14) : String.format(Locale.ROOT, "%14.4f", loss));
            }
            lines.add(line.toString());
        });
        return lines;
    }

    /** The checks as a table of text, a line each. */
    List<String> checkTable() {
        return checks.stream()
                .map(check ->
                        String.format("%-8s%-46s%s", check.passed() ? "ok" : "FAILED", check.name(), check.detail()))
                .toList();
    }
}
