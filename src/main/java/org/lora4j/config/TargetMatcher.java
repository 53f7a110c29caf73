package org.lora4j.config;

import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.OptionalInt;
import java.util.Set;
import java.util.function.Predicate;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.jspecify.annotations.Nullable;

/** Decides which module paths a configuration means, by the rules of PEFT 0.21's {@code check_target_module_exists}. */
public final class TargetMatcher {
    /** What a configuration says about one module. */
    public enum Verdict {
        TARGET,
        /** Named by {@code excludeModules}, or at or below a module of {@code modulesToSave}. */
        EXCLUDED,
        OTHER
    }

    private static final String INDEX = "(?P<idx>\\d+)\\.";

    private final LoraConfig config;
    private final @Nullable Predicate<String> targets;
    private final @Nullable Predicate<String> excluded;
    private final List<Pattern> saved = new ArrayList<>();
    private final List<Pattern> layerIndex = new ArrayList<>();

    public TargetMatcher(LoraConfig config) {
        this.config = config;
        this.targets = predicate(config.targetModules());
        this.excluded = predicate(config.excludeModules());
        for (String name : config.modulesToSave()) {
            saved.add(PythonRegex.compile("(^|.*\\.)" + name + "($|\\..*)"));
        }
        // The lazy prefix finds the first numbered part of a path: the layer, not an expert inside it.
        if (config.layersPattern().isEmpty()) {
            layerIndex.add(PythonRegex.compile(".*?\\.[^.]*\\." + INDEX));
        }
        for (String pattern : config.layersPattern()) {
            layerIndex.add(PythonRegex.compile("(?:^|.*?\\.)" + pattern + "\\." + INDEX));
        }
    }

    public Verdict verdict(String path) {
        if (excluded != null && excluded.test(path)) {
            return Verdict.EXCLUDED;
        }
        if (saved.stream().anyMatch(pattern -> pattern.matcher(path).lookingAt())) {
            return Verdict.EXCLUDED;
        }
        boolean target = targets != null && targets.test(path) && (isNamedInFull(path) || inWantedLayer(path));
        return target ? Verdict.TARGET : Verdict.OTHER;
    }

    /**
     * What "all-linear" means in a model: every linear layer but the one that gives the output, whose path is the output
     * layer of a language model or else, for sequence classification, the first of {@code score} and {@code
     * classifier} that the model has.
     *
     * @param linear the paths of the linear layers, Hugging Face's Conv1D among them
     * @param modules the paths of all modules
     * @param outputLayer the path of the layer from hidden states to tokens, null if the model has none
     */
    public static List<String> allLinear(
            Collection<String> linear,
            Collection<String> modules,
            @Nullable String outputLayer,
            @Nullable TaskType task) {
        String head = outputLayer;
        if (head == null && task == TaskType.SEQ_CLS) {
            head = modules.contains("score") ? "score" : "classifier";
        }
        List<String> targets = new ArrayList<>(linear);
        targets.remove(head);
        return targets;
    }

    private static @Nullable Predicate<String> predicate(@Nullable ModuleSelector selector) {
        if (selector == null) {
            return null;
        }
        if (selector instanceof ModuleSelector.Regex regex) {
            return PythonRegex.compile(regex.regex()).asMatchPredicate();
        }
        if (selector instanceof ModuleSelector.Names names) {
            return path -> names.names().stream().anyMatch(name -> path.equals(name) || path.endsWith("." + name));
        }
        throw new IllegalArgumentException("\"all-linear\" must be expanded to names before matching");
    }

    /** PEFT does not ask for the layer of a module named in full. */
    private boolean isNamedInFull(String path) {
        return config.targetModules() instanceof ModuleSelector.Names names
                && names.names().contains(path);
    }

    private boolean inWantedLayer(String path) {
        Set<Integer> layers = Set.copyOf(config.layersToTransform());
        if (layers.isEmpty()) {
            return true;
        }
        OptionalInt layer = layerOf(path);
        return layer.isPresent() && layers.contains(layer.getAsInt());
    }

    private OptionalInt layerOf(String path) {
        for (Pattern pattern : layerIndex) {
            Matcher matcher = pattern.matcher(path);
            if (matcher.lookingAt()) {
                return OptionalInt.of(Integer.parseInt(matcher.group("idx")));
            }
        }
        return OptionalInt.empty();
    }
}
