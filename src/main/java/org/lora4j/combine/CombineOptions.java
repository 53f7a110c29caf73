package org.lora4j.combine;

import java.util.Collections;
import java.util.EnumSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.regex.Pattern;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.PeftCompat;
import org.lora4j.config.PythonRegex;

/**
 * How to combine adapters. Building wrong options fails with an {@link IllegalArgumentException} that names option, value
 * and rule.
 */
public final class CombineOptions {
    /** A regular expression for the whole or the end of a layer's path, and the weights there. */
    private record LayerWeights(String regex, Pattern path, List<Double> weights) {}

    private final CombinationType type;
    private final @Nullable Double density;
    private final MajoritySign majoritySign;
    private final @Nullable RankRule rank;
    private final @Nullable Double clamp;
    private final double epsilon;
    private final double gamma;
    private final MergeSpace space;
    private final long seed;
    private final boolean differentTargets;
    private final List<LayerWeights> layerWeights;
    private final Set<PeftCompat> compat;

    private CombineOptions(Builder b) {
        type = b.type;
        density = b.density;
        majoritySign = b.majoritySign;
        rank = b.rank;
        clamp = b.clamp;
        epsilon = b.epsilon;
        gamma = b.gamma;
        space = b.space;
        seed = b.seed;
        differentTargets = b.differentTargets;
        compat = Collections.unmodifiableSet(b.compat);
        layerWeights = b.layerWeights.entrySet().stream()
                .map(each -> new LayerWeights(each.getKey(), regex(each.getKey()), List.copyOf(each.getValue())))
                .toList();
        checkDensity();
        checkRank();
        check("clamp", clamp, clamp == null || clamp > 0 && clamp <= 1, "must be a quantile above 0 and at most 1");
        for (Map.Entry<String, List<Double>> each : b.layerWeights.entrySet()) {
            check(
                    "layerWeights[" + each.getKey() + "]",
                    each.getValue(),
                    each.getValue().stream().allMatch(Double::isFinite),
                    "must be finite numbers, one for each adapter");
        }
        if (space == MergeSpace.CORE && compat.contains(PeftCompat.COMBINES_FACTORS) && type.isOfFactorsInPeft()) {
            throw wrong("space", space, "has no counterpart in PEFT; leave out COMBINES_FACTORS");
        }
    }

    private void checkDensity() {
        Double given = density;
        if (given == null) {
            if (type.needsDensity()) {
                throw wrong(
                        "density", null, "must be given for " + type + ": the part of the elements to keep, as 0.5");
            }
            return;
        }
        check("density", given, type.needsDensity(), "has no meaning for " + type + "; leave it out");
        check("density", given, given > 0 && given <= 1, "must be above 0 and at most 1");
        if (type.pruning() == CombinationType.Pruning.BY_RANK) {
            check(
                    "epsilon",
                    epsilon,
                    epsilon >= 0 && given - epsilon / 2 > 0 && given + epsilon / 2 <= 1,
                    "must be 0 or more, and density +- epsilon / 2 must stay above 0 and at most 1; density is "
                            + given);
        }
        if (type.pruning() == CombinationType.Pruning.OUTLIERS) {
            check(
                    "gamma",
                    gamma,
                    gamma >= 0 && gamma + given <= 1,
                    "must be 0 or more and with the density at most 1; density is " + given);
        }
    }

    private void checkRank() {
        RankRule given = rank;
        if (given != null) {
            boolean free = type != CombinationType.CAT && type != CombinationType.EXACT && !ofFactors();
            check("rank", given, free, "cannot be chosen for " + type + "; use svd or linear, or leave it out");
        }
    }

    private static Pattern regex(String path) {
        try {
            return PythonRegex.compile("(.*\\.)?(" + path + ")");
        } catch (IllegalArgumentException e) {
            throw wrong("layerWeights", path, "is not a regular expression of Python's re: " + e.getMessage());
        }
    }

    private static void check(String option, @Nullable Object value, boolean holds, String rule) {
        if (!holds) {
            throw wrong(option, value, rule);
        }
    }

    private static IllegalArgumentException wrong(String option, @Nullable Object value, String rule) {
        return new IllegalArgumentException("CombineOptions." + option + " = " + value + ": " + rule);
    }

    /** A builder for a type, with defaults for the rest. */
    public static Builder builder(CombinationType type) {
        return new Builder(type);
    }

    /** Options with nothing but a type. */
    public static CombineOptions of(CombinationType type) {
        return builder(type).build();
    }

    public CombinationType type() {
        return type;
    }

    /** The part of the elements that is kept, above 0 and at most 1; null for types that keep all. */
    public @Nullable Double density() {
        return density;
    }

    double requireDensity() {
        if (density == null) {
            throw new IllegalStateException(type + " has no density");
        }
        return density;
    }

    public MajoritySign majoritySign() {
        return majoritySign;
    }

    /** The rule for the rank: the one given or the type's own. */
    public RankRule rank() {
        return rank == null ? type.defaultRank() : rank;
    }

    /** The quantile of the elements of B and A, taken together, that they are limited to; null for no limit. */
    public @Nullable Double clamp() {
        return clamp;
    }

    double epsilon() {
        return epsilon;
    }

    double gamma() {
        return gamma;
    }

    public MergeSpace space() {
        return space;
    }

    /** The seed of all random numbers; a layer's depend on its path too, and on nothing else. */
    public long seed() {
        return seed;
    }

    /** Whether a layer that only some adapters have counts, with no update of the others. */
    public boolean differentTargets() {
        return differentTargets;
    }

    boolean has(PeftCompat defect) {
        return compat.contains(defect);
    }

    /** Whether A and B are combined by themselves, as in PEFT. */
    boolean ofFactors() {
        return has(PeftCompat.COMBINES_FACTORS) && type.isOfFactorsInPeft();
    }

    /** The weights at a layer: those of the first expression that matches its path or the end of it, else the general ones. */
    public List<Double> weights(String path, List<Double> general) {
        for (LayerWeights each : layerWeights) {
            if (each.path().matcher(path).matches()) {
                return each.weights();
            }
        }
        return general;
    }

    /** Checks the numbers of weights by layer, and that each expression means some layer. */
    void checkWeights(int adapters, Iterable<String> paths) {
        for (LayerWeights each : layerWeights) {
            String text = each.regex();
            check(
                    "layerWeights[" + text + "]",
                    each.weights(),
                    each.weights().size() == adapters,
                    "must be " + adapters + " numbers, one for each adapter");
            boolean matches = false;
            for (String path : paths) {
                matches |= each.path().matcher(path).matches();
            }
            check("layerWeights", text, matches, "matches the path of no layer; check it");
        }
    }

    /** The type and what differs from the defaults. */
    @Override
    public String toString() {
        StringBuilder text = new StringBuilder(type.peftName());
        if (density != null) {
            text.append(", density ").append(density);
        }
        if (type.merge() == CombinationType.Merge.ELECT) {
            text.append(", majority sign ").append(majoritySign.name().toLowerCase(Locale.ROOT));
        }
        if (type.pruning() == CombinationType.Pruning.BY_RANK) {
            text.append(", epsilon ").append(epsilon);
        }
        if (type.pruning() == CombinationType.Pruning.OUTLIERS) {
            text.append(", gamma ").append(gamma);
        }
        if (space == MergeSpace.CORE) {
            text.append(", in core space");
        }
        if (clamp != null) {
            text.append(", clamp ").append(clamp);
        }
        layerWeights.forEach(each ->
                text.append(", weights ").append(each.weights()).append(" at ").append(each.regex()));
        compat.forEach(defect -> text.append(", ").append(defect));
        return text.append(", ").append(rank()).toString();
    }

    /** Collects options. */
    public static final class Builder {
        private final CombinationType type;
        private @Nullable Double density;
        private MajoritySign majoritySign = MajoritySign.TOTAL;
        private @Nullable RankRule rank;
        private @Nullable Double clamp;
        private double epsilon = 0.1;
        private double gamma = 0.01;
        private MergeSpace space = MergeSpace.DELTA;
        private long seed;
        private boolean differentTargets;
        private final Map<String, List<Double>> layerWeights = new LinkedHashMap<>();
        private final Set<PeftCompat> compat = EnumSet.noneOf(PeftCompat.class);

        private Builder(CombinationType type) {
            this.type = type;
        }

        /** Needed by all types that prune: the part of the elements to keep. */
        public Builder density(double value) {
            density = value;
            return this;
        }

        public Builder majoritySign(MajoritySign value) {
            majoritySign = value;
            return this;
        }

        /** PEFT's {@code svd_rank}. */
        public Builder rank(int value) {
            return rank(new RankRule.Fixed(value));
        }

        public Builder rank(RankRule value) {
            rank = value;
            return this;
        }

        /** PEFT's {@code svd_clamp}. */
        public Builder clamp(double value) {
            clamp = value;
            return this;
        }

        /** For della: how far the probability to keep an element varies with its rank in the row; 0.1 unless given. */
        public Builder epsilon(double value) {
            epsilon = value;
            return this;
        }

        /** For breadcrumbs: the part of the largest elements that is dropped; 0.01 unless given. */
        public Builder gamma(double value) {
            gamma = value;
            return this;
        }

        public Builder space(MergeSpace value) {
            space = value;
            return this;
        }

        public Builder seed(long value) {
            seed = value;
            return this;
        }

        /** Lets adapters have different layers; otherwise that is an error. */
        public Builder differentTargets(boolean value) {
            differentTargets = value;
            return this;
        }

        /**
         * Other weights at some layers.
         *
         * @param path a regular expression of Python's for the path of a layer or the end of it; the first that matches counts
         * @param weights one for each adapter
         */
        public Builder layerWeights(String path, List<Double> weights) {
            layerWeights.put(path, weights);
            return this;
        }

        /** Repeats defects of PEFT. */
        public Builder compat(Set<PeftCompat> defects) {
            compat.addAll(defects);
            return this;
        }

        /** @throws IllegalArgumentException naming the option that is wrong */
        public CombineOptions build() {
            return new CombineOptions(this);
        }
    }
}
