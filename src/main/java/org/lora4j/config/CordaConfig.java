package org.lora4j.config;

import java.util.Locale;
import org.jspecify.annotations.Nullable;

/**
 * PEFT's {@code corda_config}: context-oriented decomposition adaptation (arXiv:2406.05223).
 *
 * @param method which part of the weight trains
 * @param useFloat16ForCovariance whether covariances are summed in the type of the layer's input and not in float32
 * @param cacheFile PEFT's file of decompositions, or null
 * @param covarianceFile PEFT's file of covariances, or null
 */
public record CordaConfig(
        Method method,
        boolean useFloat16ForCovariance,
        @Nullable String cacheFile,
        @Nullable String covarianceFile) {
    /** Which part of the weight trains. */
    public enum Method {
        /** Instruction previewed mode: what the inputs use most. */
        IPM,
        /** Knowledge preserved mode: what the inputs use least. */
        KPM;

        @Override
        public String toString() {
            return name().toLowerCase(Locale.ROOT);
        }
    }

    /**
     * The settings of a configuration, with PEFT's defaults.
     *
     * @throws IllegalArgumentException naming field, value and rule
     */
    public static CordaConfig of(LoraConfig config) {
        Settings settings = Settings.of(config, "corda_config");
        return new CordaConfig(
                settings.choice("corda_method", Method.class, Method.IPM),
                settings.flag("use_float16_for_covariance", false),
                settings.text("cache_file"),
                settings.text("covariance_file"));
    }
}
