package org.lora4j.config;

/**
 * PEFT's {@code eva_config}: explained variance adaptation (arXiv:2410.07170).
 *
 * @param rho how many times its rank a layer may get, at least 1; 1 leaves the ranks as they are
 * @param tau the cosine between a component before and after a batch from which it counts as found, in [0, 1]
 * @param useLabelMask whether positions without a label are left out
 * @param labelMaskValue the label that stands for none
 * @param whiten whether components are divided by the square roots of their singular values
 * @param adjustScalingFactors whether alpha follows the rank, so that the scale stays
 */
public record EvaConfig(
        double rho,
        double tau,
        boolean useLabelMask,
        long labelMaskValue,
        boolean whiten,
        boolean adjustScalingFactors) {
    /** @throws IllegalArgumentException naming field, value and rule */
    public EvaConfig {
        if (!(rho >= 1 && rho < Double.POSITIVE_INFINITY)) {
            throw Invalid.field("eva_config.rho", rho, "must be a finite number of at least 1");
        }
        if (!(tau >= 0 && tau <= 1)) {
            throw Invalid.field("eva_config.tau", tau, "must be between 0 and 1");
        }
    }

    /**
     * The settings of a configuration, with PEFT's defaults.
     *
     * @throws IllegalArgumentException naming field, value and rule
     */
    public static EvaConfig of(LoraConfig config) {
        Settings settings = Settings.of(config, "eva_config");
        return new EvaConfig(
                settings.number("rho", 2.0),
                settings.number("tau", 0.99),
                settings.flag("use_label_mask", true),
                settings.integer("label_mask_value", -100),
                settings.flag("whiten", false),
                settings.flag("adjust_scaling_factors", true));
    }
}
