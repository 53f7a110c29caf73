package org.lora4j.config;

/**
 * PEFT's {@code loftq_config}: LoRA fine-tuning aware quantisation (arXiv:2310.08659).
 *
 * @param bits of the quantised weight: 4 (NF4) or 8 (int8) as in PEFT 0.21, or 2 (NF2) as in PEFT before 0.20
 * @param iterations how often the weight is quantised and the factors are fitted, at least 1
 */
public record LoftqConfig(int bits, int iterations) {
    /** @throws IllegalArgumentException naming field, value and rule */
    public LoftqConfig {
        if (bits != 2 && bits != 4 && bits != 8) {
            throw Invalid.field("loftq_config.loftq_bits", bits, "must be 2, 4 or 8");
        }
        if (iterations < 1) {
            throw Invalid.field("loftq_config.loftq_iter", iterations, "must be at least 1");
        }
    }

    /**
     * The settings of a configuration, with PEFT's defaults.
     *
     * @throws IllegalArgumentException naming field, value and rule
     */
    public static LoftqConfig of(LoraConfig config) {
        Settings settings = Settings.of(config, "loftq_config");
        return new LoftqConfig((int) Math.max(-1, Math.min(settings.integer("loftq_bits", 4), 1 << 10)), (int)
                Math.max(-1, Math.min(settings.integer("loftq_iter", 1), Integer.MAX_VALUE)));
    }
}
