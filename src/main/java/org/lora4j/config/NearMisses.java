package org.lora4j.config;

import java.util.Collection;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;

/** Finds module names that look like one the model does not have: what a typing error was meant to be. */
public final class NearMisses {
    private static final int SHOWN = 3;

    private NearMisses() {}

    /**
     * The ends of module paths, with as many parts as the name, that differ from it in at most a third of its letters;
     * the nearest first, at most three. Case does not count.
     */
    public static List<String> of(String name, Collection<String> paths) {
        int parts = name.split("\\.", -1).length;
        int limit = Math.max(1, name.length() / 3);
        Map<String, Integer> distances = new LinkedHashMap<>();
        for (String path : paths) {
            String end = end(path, parts);
            distances.computeIfAbsent(end, e -> distance(lower(name), lower(e)));
        }
        return distances.entrySet().stream()
                .filter(entry -> entry.getValue() <= limit)
                .sorted(Comparator.comparing(Map.Entry::getValue))
                .limit(SHOWN)
                .map(Map.Entry::getKey)
                .toList();
    }

    private static String lower(String text) {
        return text.toLowerCase(Locale.ROOT);
    }

    private static String end(String path, int parts) {
        int from = path.length();
        for (int i = 0; i < parts && from >= 0; i++) {
            from = path.lastIndexOf('.', from - 1);
        }
        return path.substring(from + 1);
    }

    /** Levenshtein's distance: the least number of letters added, removed or replaced. */
    private static int distance(String a, String b) {
        int[] row = new int[b.length() + 1];
        for (int j = 0; j < row.length; j++) {
            row[j] = j;
        }
        for (int i = 1; i <= a.length(); i++) {
            int diagonal = row[0];
            row[0] = i;
            for (int j = 1; j < row.length; j++) {
                int replaced = diagonal + (a.charAt(i - 1) == b.charAt(j - 1) ? 0 : 1);
                diagonal = row[j];
                row[j] = Math.min(replaced, Math.min(row[j], row[j - 1]) + 1);
            }
        }
        return row[b.length()];
    }
}
