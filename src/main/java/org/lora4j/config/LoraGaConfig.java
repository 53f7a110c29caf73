package org.lora4j.config;

/**
 * PEFT's {@code lora_ga_config}: gradient approximation (arXiv:2407.05000).
 *
 * @param direction which singular vectors of the gradient become A and which B
 * @param scale how large the factors are
 * @param stableGamma the gamma of {@link Scale#STABLE}, above 0
 */
public record LoraGaConfig(Direction direction, Scale scale, double stableGamma) {
    /** Which of the first 2r right and left singular vectors of the gradient become A and B. */
    public enum Direction {
        /** A the second, fourth, ...; B the first, third, ... */
        ALTERNATING("ArBr"),
        /** A the second r; B the first r. */
        A_SECOND_HALF("A2rBr"),
        /** A the first r; B the second r. */
        B_SECOND_HALF("ArB2r"),
        /** The same r of them for both, drawn at random. */
        RANDOM("random");

        private final String jsonName;

        Direction(String jsonName) {
            this.jsonName = jsonName;
        }

        @Override
        public String toString() {
            return jsonName;
        }
    }

    /** How large the factors are. */
    public enum Scale {
        /** B times out^(1/4) / sqrt(gamma). */
        STABLE("stable"),
        /** B times the ratio of the largest singular value of the weight to that of B. */
        WEIGHT_SVD("weight_svd"),
        /** A and B divided by the adapter's scale. */
        GD_SCALE("gd_scale"),
        UNIT("unit");

        private final String jsonName;

        Scale(String jsonName) {
            this.jsonName = jsonName;
        }

        @Override
        public String toString() {
            return jsonName;
        }
    }

    /** @throws IllegalArgumentException naming field, value and rule */
    public LoraGaConfig {
        if (!(stableGamma > 0 && stableGamma < Double.POSITIVE_INFINITY)) {
            throw Invalid.field("lora_ga_config.stable_gamma", stableGamma, "must be a finite number above 0");
        }
    }

    /**
     * The settings of a configuration, with PEFT's defaults.
     *
     * @throws IllegalArgumentException naming field, value and rule
     */
    public static LoraGaConfig of(LoraConfig config) {
        Settings settings = Settings.of(config, "lora_ga_config");
        return new LoraGaConfig(
                settings.choice("direction", Direction.class, Direction.B_SECOND_HALF),
                settings.choice("scale", Scale.class, Scale.STABLE),
                settings.number("stable_gamma", 16));
    }
}
