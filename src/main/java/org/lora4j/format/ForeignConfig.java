package org.lora4j.format;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.function.Function;
import java.util.stream.Collectors;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.LoraConfigBuilder;
import org.lora4j.format.LoraKey.Role;

/**
 * The configuration of an adapter of another layout. What the tensors do not say comes from the metadata that diffusers
 * writes, the fields of PEFT's configuration behind the name of their part; without them alpha is the rank.
 */
final class ForeignConfig {
    /** The metadata entry with the configurations of all parts, as JSON. */
    static final String METADATA = "lora_adapter_metadata";

    private final TensorFile file;
    private final List<ForeignModule> modules;
    private final ModuleNames names;
    private final List<String> problems;
    private final Map<String, LoraConfig> given;
    private final Set<String> parts = new TreeSet<>();

    ForeignConfig(
            TensorFile file,
            AdapterLayout layout,
            List<ForeignModule> modules,
            ModuleNames names,
            List<String> problems)
            throws IOException {
        this.file = file;
        this.modules = modules;
        this.names = names;
        this.problems = problems;
        modules.forEach(module -> parts.add(module.part));
        this.given = layout == AdapterLayout.DIFFUSERS ? given() : Map.of();
    }

    private Map<String, LoraConfig> given() throws IOException {
        Map<String, LoraConfig> configs = new TreeMap<>();
        String text = file.metadata().get(METADATA);
        if (text == null) {
            return configs;
        }
        String source = file.path() + ": metadata " + METADATA;
        Map<String, @Nullable Object> all = StrictJson.parseObject(text.getBytes(StandardCharsets.UTF_8), source);
        for (String part : parts) {
            Map<String, @Nullable Object> own = new LinkedHashMap<>();
            String prefix = part.isEmpty() ? "" : part + ".";
            all.forEach((key, value) -> {
                if (key.startsWith(prefix)) {
                    own.put(key.substring(prefix.length()), value);
                }
            });
            if (!own.isEmpty()) {
                own.putIfAbsent("peft_type", AdapterConfigReader.PEFT_TYPE);
                configs.put(part, AdapterConfigReader.config(own, source));
            }
        }
        return configs;
    }

    LoraConfig config() throws FormatException {
        given.forEach(this::checkAgainst);
        boolean dora = all(Role.MAGNITUDE, "DoRA magnitudes");
        boolean bias = all(Role.B_BIAS, "biases of B");
        LoraConfig whole = parts.size() == 1 ? given.get(parts.iterator().next()) : null;
        if (whole != null && modules.stream().allMatch(module -> module.path.equals(module.module))) {
            if (dora != Boolean.TRUE.equals(whole.otherFields().get("use_dora"))
                    || bias != Boolean.TRUE.equals(whole.otherFields().get("lora_bias"))) {
                problems.add("use_dora or lora_bias of its metadata contradicts its tensors");
            }
            return whole;
        }
        try {
            return derived(dora, bias);
        } catch (IllegalArgumentException e) {
            throw new FormatException(file.path() + ": " + e.getMessage(), e);
        }
    }

    /** Compares a configuration in the metadata with the tensors of its part, and takes its alphas. */
    private void checkAgainst(String part, LoraConfig config) {
        for (ForeignModule module : modules) {
            if (!module.part.equals(part)) {
                continue;
            }
            int rank = config.rankFor(module.module);
            if (rank != module.rank) {
                problems.add(module.keys() + " have rank " + module.rank + ", and " + rank + " in the metadata");
            }
            if (module.tensors.containsKey(Role.ALPHA)) {
                problems.add(module.keys() + " give an alpha beside the metadata; remove one");
            }
            module.alpha = config.alphaFor(module.module);
        }
    }

    /** Whether every module has such a tensor; some with and some without are a problem. */
    private boolean all(Role role, String what) {
        List<String> without = ForeignModule.lacking(modules, role);
        if (!without.isEmpty() && without.size() < modules.size()) {
            problems.add("PEFT's " + what + " are for all adapted modules or none, and these have none: " + without);
        }
        return without.isEmpty();
    }

    private LoraConfig derived(boolean dora, boolean bias) {
        Set<String> targets = new LinkedHashSet<>();
        modules.forEach(module -> targets.add(module.path));
        Set<String> extra = names.alsoMatched(targets);
        Set<String> lost = new TreeSet<>(targets);
        lost.removeIf(target -> !ModuleNames.endsWithAny(target, extra));
        if (!lost.isEmpty()) {
            problems.add("no list of names tells the modules " + lost + " from " + extra);
        }
        int rank = mostFrequent(module -> module.rank);
        double alpha = mostFrequent(module -> module.alpha);
        Map<String, Integer> ranks = new LinkedHashMap<>();
        Map<String, Double> alphas = new LinkedHashMap<>();
        for (ForeignModule module : modules) {
            if (module.rank != rank) {
                ranks.put(exactly(module.path), module.rank);
            }
            if (module.alpha != alpha) {
                alphas.put(exactly(module.path), module.alpha);
            }
        }
        LoraConfigBuilder b =
                common().r(rank).loraAlpha(alpha).rankPattern(ranks).alphaPattern(alphas);
        b.targetModules(targets).useDora(dora).loraBias(bias);
        return extra.isEmpty() ? b.build() : b.excludeModules(extra).build();
    }

    /** What the metadata of all parts agree on. */
    private LoraConfigBuilder common() {
        LoraConfigBuilder b = LoraConfig.builder().inferenceMode(true);
        Set<Object> scales = new LinkedHashSet<>();
        Set<Object> others = new LinkedHashSet<>();
        for (String part : parts) {
            LoraConfig config = given.getOrDefault(part, LoraConfig.builder().build());
            scales.add(config.useRslora());
            Map<String, @Nullable Object> fields = new LinkedHashMap<>(config.otherFields());
            fields.keySet().removeAll(Set.of("use_dora", "lora_bias"));
            others.add(fields);
            b.useRslora(config.useRslora());
            fields.forEach(b::otherField);
        }
        if (scales.size() > 1 || others.size() > 1) {
            problems.add("the metadata of its parts " + parts + " differ in use_rslora or another field that has one "
                    + "value for all modules; convert one part at a time");
        }
        return b;
    }

    private <T extends Comparable<T>> T mostFrequent(Function<ForeignModule, T> value) {
        Map<T, Long> counts =
                modules.stream().collect(Collectors.groupingBy(value, TreeMap::new, Collectors.counting()));
        return counts.entrySet().stream()
                .max(Map.Entry.comparingByValue())
                .orElseThrow()
                .getKey();
    }

    /** A pattern of PEFT's that means the module of this path alone. */
    private static String exactly(String path) {
        return "^" + path.replaceAll("[\\\\.^$*+?{}\\[\\]|()]", "\\\\$0");
    }
}
