package org.lora4j.model;

import java.io.IOException;
import java.nio.file.FileSystems;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.PathMatcher;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.TreeMap;
import java.util.stream.Stream;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/**
 * Writes docs/parity.md from src/test/resources/parity/features.json and the differences the tests have left in
 * target/parity. Run by {@code scripts/parity-doc} after the tests.
 */
final class ParityDoc {
    static final Path FEATURES = Path.of("src/test/resources/parity/features.json");

    /** A feature of PEFT: what it is called there and here, and the golden cases that show it. */
    record Feature(String section, String peft, String ours, List<String> cases, String note) {}

    private ParityDoc() {}

    /** @param args the file to write */
    public static void main(String[] args) throws IOException {
        Files.writeString(Path.of(args[0]), text(features(), differences(), goldenCases()));
    }

    static List<Feature> features() throws IOException {
        List<Feature> features = new ArrayList<>();
        for (JsonNode each : new JsonMapper().readTree(Files.readString(FEATURES))) {
            features.add(new Feature(
                    each.get("section").asString(),
                    each.get("peft").asString(),
                    each.get("ours").asString(),
                    each.get("cases").valueStream().map(JsonNode::asString).toList(),
                    each.path("note").asString("")));
        }
        return features;
    }

    /** All golden cases, as group/name. */
    static List<String> goldenCases() throws IOException {
        try (Stream<Path> files = Files.walk(GoldenCase.GOLDEN)) {
            return files.filter(f -> f.endsWith("case.json"))
                    .map(f -> GoldenCase.GOLDEN.relativize(f.getParent()).toString())
                    .sorted()
                    .toList();
        }
    }

    /** What each case differs by at most, in anything compared. */
    static Map<String, Double> differences() throws IOException {
        Map<String, Double> largest = new TreeMap<>();
        if (!Files.isDirectory(ParityReport.FOLDER)) {
            throw new IOException(ParityReport.FOLDER + " is missing: run the tests first");
        }
        try (Stream<Path> files = Files.list(ParityReport.FOLDER)) {
            for (Path file : files.sorted().toList()) {
                JsonNode cases = new JsonMapper().readTree(Files.readString(file));
                cases.properties()
                        .forEach(entry -> entry.getValue()
                                .properties()
                                .forEach(what -> largest.merge(
                                        entry.getKey(), what.getValue().asDouble(), Math::max)));
            }
        }
        return largest;
    }

    /** The cases that match one of a feature's patterns. */
    static List<String> matching(Feature feature, List<String> cases) {
        List<PathMatcher> patterns = feature.cases().stream()
                .map(glob -> FileSystems.getDefault().getPathMatcher("glob:" + glob))
                .toList();
        return cases.stream()
                .filter(name -> patterns.stream().anyMatch(p -> p.matches(Path.of(name))))
                .toList();
    }

    static String text(List<Feature> features, Map<String, Double> differences, List<String> cases) {
        StringBuilder text = new StringBuilder();
        text.append("# Parity with PEFT 0.21\n\n")
                .append(
                        "Written by `scripts/parity-doc` from `src/test/resources/parity/features.json` and the last test run;")
                .append(" do not edit.\n\n")
                .append(
                        "Each case was made by real PEFT (`src/test/python/golden`) and is replayed by the tests. The difference is")
                .append(
                        " the largest of all that a case compares, as a part of the largest value: float32 cases differ by")
                .append(" the order of sums, bfloat16 and float16 cases by a few roundings.\n\n")
                .append(String.format(
                        Locale.ROOT,
                        "%d golden cases, %d of them with a recorded difference.%n",
                        cases.size(),
                        cases.stream().filter(differences::containsKey).count()));
        String section = "";
        for (Feature feature : features) {
            if (!feature.section().equals(section)) {
                section = feature.section();
                text.append("\n## ").append(section).append("\n\n");
                text.append("| PEFT | lora4j | golden cases | float32 | half types | |\n|---|---|---|---|---|---|\n");
            }
            List<String> own = matching(feature, cases);
            text.append(String.format(
                    Locale.ROOT,
                    "| %s | %s | %s | %s | %s | %s |%n",
                    feature.peft(),
                    feature.ours(),
                    names(own),
                    largest(own, differences, false),
                    largest(own, differences, true),
                    feature.note()));
        }
        return text.toString();
    }

    /** Cases on a bfloat16 or float16 base say so in their names. */
    private static String largest(List<String> cases, Map<String, Double> differences, boolean half) {
        double largest = cases.stream()
                .filter(name -> differences.containsKey(name) && name.matches(".*(bf16|fp16|float16).*") == half)
                .mapToDouble(differences::get)
                .max()
                .orElse(Double.NaN);
        return Double.isNaN(largest) ? "" : String.format(Locale.ROOT, "%.1e", largest);
    }

    private static String names(List<String> cases) {
        if (cases.isEmpty()) {
            return "";
        }
        String first = "`" + cases.get(0) + "`";
        return cases.size() == 1 ? first : first + " and " + (cases.size() - 1) + " more";
    }
}
