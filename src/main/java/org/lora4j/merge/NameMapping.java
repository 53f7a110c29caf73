package org.lora4j.merge;

import java.util.ArrayList;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * How the paths of an adapter become those of a checkpoint: they differ at the beginning where one was made with a model's
 * head and the other without it, as {@code model.layers.0} and {@code layers.0} do.
 *
 * @param from the beginning of the adapter's paths
 * @param to what stands there in the checkpoint
 */
record NameMapping(String from, String to) {
    static final NameMapping SAME = new NameMapping("", "");

    private static final int MOST_BEGINNINGS = 64;

    /** A path of the adapter as it is in the checkpoint; paths the mapping does not lead to a tensor stay as they are. */
    String apply(String path, BaseCheckpoint base) {
        if (this.equals(SAME) || !path.startsWith(from)) {
            return path;
        }
        String mapped = to + path.substring(from.length());
        return base.has(mapped) || !base.has(path) ? mapped : path;
    }

    /**
     * The mapping under which most paths are in the checkpoint: the paths as they are, unless another has more of them.
     *
     * @param ambiguous gets the mappings that are equally good and differ
     */
    static NameMapping find(Collection<String> paths, BaseCheckpoint base, List<NameMapping> ambiguous) {
        long best = paths.stream().filter(base::has).count();
        if (best == paths.size()) {
            return SAME;
        }
        Map<List<String>, NameMapping> winners = new LinkedHashMap<>();
        for (String from : beginnings(paths)) {
            for (String to : beginnings(base.names())) {
                NameMapping mapping = new NameMapping(from, to);
                List<String> mapped =
                        paths.stream().map(path -> mapping.apply(path, base)).toList();
                long found = mapped.stream().filter(base::has).count();
                if (found > best) {
                    winners.clear();
                    best = found;
                }
                if (found == best && found > 0 && !from.equals(to)) {
                    winners.putIfAbsent(mapped, mapping);
                }
            }
        }
        long same = paths.stream().filter(base::has).count();
        if (winners.isEmpty() || same == best) {
            return SAME;
        }
        List<NameMapping> all = new ArrayList<>(winners.values());
        if (all.size() > 1) {
            ambiguous.addAll(all);
        }
        return all.get(0);
    }

    /** The empty beginning, and those of one and two parts. */
    private static Set<String> beginnings(Collection<String> paths) {
        Set<String> beginnings = new LinkedHashSet<>(List.of(""));
        for (String path : paths) {
            int first = path.indexOf('.');
            int second = first < 0 ? -1 : path.indexOf('.', first + 1);
            if (beginnings.size() < MOST_BEGINNINGS) {
                if (first >= 0) {
                    beginnings.add(path.substring(0, first + 1));
                }
                if (second >= 0) {
                    beginnings.add(path.substring(0, second + 1));
                }
            }
        }
        return beginnings;
    }

    @Override
    public String toString() {
        return "\"" + from + "\" -> \"" + to + "\"";
    }
}
