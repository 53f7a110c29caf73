package org.lora4j.model;

import java.util.ArrayList;
import java.util.Collection;
import java.util.HashSet;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.ModuleSelector;

/**
 * Shortens long lists of targets as PEFT 0.21 does: many full paths, which "all-linear" expands to, become a few ends of
 * paths that mean the same modules, such as {@code q_proj}.
 */
final class MinimalTargets {
    /** Shorter lists are left as they are. */
    static final int MIN_TARGETS = 20;

    private MinimalTargets() {}

    /**
     * The configuration with fewer target names that select the same modules, or the given one if it names fewer than
     * {@link #MIN_TARGETS} or no shorter list does.
     *
     * @param paths all modules of the model
     */
    static LoraConfig condense(LoraConfig config, Collection<String> paths) {
        if (!(config.targetModules() instanceof ModuleSelector.Names targets)
                || targets.names().size() < MIN_TARGETS) {
            return config;
        }
        Set<String> others = new LinkedHashSet<>(paths);
        others.removeIf(path ->
                targets.names().contains(path) || targets.names().stream().anyMatch(name -> path.endsWith("." + name)));
        Set<String> minimal = of(targets.names(), others);
        return minimal.size() < targets.names().size()
                ? config.toBuilder().targetModules(minimal).build()
                : config;
    }

    /**
     * For every target the shortest end of its path that ends no other path; ends that stand for several targets once.
     * A target that no end of its own path singles out stays out if another end covers it.
     *
     * @param targets at least one path or end of a path
     * @param others the paths that must not match, none of them a target
     * @throws IllegalArgumentException if there are no targets, one is empty, or one is among the others
     */
    static Set<String> of(Collection<String> targets, Collection<String> others) {
        if (targets.isEmpty() || targets.contains("")) {
            throw new IllegalArgumentException("targets " + targets + " must be names, at least one and none empty");
        }
        Set<String> taken = new HashSet<>();
        for (String other : others) {
            if (targets.contains(other)) {
                throw new IllegalArgumentException("'" + other + "' is both a target and among the other modules");
            }
            taken.addAll(ends(other));
        }
        // In the order of their ends, as PEFT visits them: a different one may give a different set.
        Map<List<String>, String> byEnds = new TreeMap<>(MinimalTargets::compare);
        targets.forEach(target -> byEnds.put(ends(target), target));
        Set<String> minimal = new LinkedHashSet<>();
        byEnds.forEach((ends, target) -> {
            for (String end : ends) {
                boolean covered = minimal.stream().anyMatch(chosen -> target.endsWith("." + chosen));
                if (!covered && !minimal.contains(end) && !taken.contains(end)) {
                    minimal.add(end);
                    break;
                }
            }
        });
        return minimal.isEmpty() ? new LinkedHashSet<>(targets) : minimal;
    }

    /** The ends of a path that begin at a part of it, the shortest first. */
    private static List<String> ends(String path) {
        List<String> ends = new ArrayList<>();
        for (int dot = path.lastIndexOf('.'); dot >= 0; dot = path.lastIndexOf('.', dot - 1)) {
            ends.add(path.substring(dot + 1));
        }
        ends.add(path);
        return ends;
    }

    private static int compare(List<String> a, List<String> b) {
        for (int i = 0; i < Math.min(a.size(), b.size()); i++) {
            int order = a.get(i).compareTo(b.get(i));
            if (order != 0) {
                return order;
            }
        }
        return Integer.compare(a.size(), b.size());
    }
}
