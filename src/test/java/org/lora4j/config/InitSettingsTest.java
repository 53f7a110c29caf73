package org.lora4j.config;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.Map;
import java.util.function.Function;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** The settings of the initialisations: PEFT's defaults, the values given, and what is refused. */
class InitSettingsTest {
    private static final Map<String, Function<LoraConfig, Record>> READERS = Map.of(
            "eva_config", EvaConfig::of,
            "corda_config", CordaConfig::of,
            "lora_ga_config", LoraGaConfig::of,
            "loftq_config", LoftqConfig::of);

    private static LoraConfig with(String key, Map<String, Object> values) {
        return LoraConfig.builder().otherField(key, values).build();
    }

    @Test
    void defaultsArePefts() {
        LoraConfig none = LoraConfig.builder().build();
        assertThat(EvaConfig.of(none)).isEqualTo(new EvaConfig(2, 0.99, true, -100, false, true));
        assertThat(CordaConfig.of(none)).isEqualTo(new CordaConfig(CordaConfig.Method.IPM, false, null, null));
        assertThat(LoraGaConfig.of(none))
                .isEqualTo(new LoraGaConfig(LoraGaConfig.Direction.B_SECOND_HALF, LoraGaConfig.Scale.STABLE, 16));
        assertThat(LoftqConfig.of(none)).isEqualTo(new LoftqConfig(4, 1));
    }

    @Test
    void valuesAreRead() {
        assertThat(EvaConfig.of(with(
                        "eva_config",
                        Map.of(
                                "rho",
                                1,
                                "tau",
                                0.5,
                                "use_label_mask",
                                false,
                                "label_mask_value",
                                3,
                                "whiten",
                                true,
                                "adjust_scaling_factors",
                                false))))
                .isEqualTo(new EvaConfig(1, 0.5, false, 3, true, false));
        assertThat(CordaConfig.of(with(
                        "corda_config",
                        Map.of(
                                "corda_method", "kpm",
                                "use_float16_for_covariance", true,
                                "cache_file", "a",
                                "covariance_file", "b",
                                "verbose", true))))
                .isEqualTo(new CordaConfig(CordaConfig.Method.KPM, true, "a", "b"));
        assertThat(LoraGaConfig.of(
                        with("lora_ga_config", Map.of("direction", "ArBr", "scale", "weight_svd", "stable_gamma", 2))))
                .isEqualTo(new LoraGaConfig(LoraGaConfig.Direction.ALTERNATING, LoraGaConfig.Scale.WEIGHT_SVD, 2));
        assertThat(LoftqConfig.of(with("loftq_config", Map.of("loftq_bits", 8, "loftq_iter", 5))))
                .isEqualTo(new LoftqConfig(8, 5));
    }

    @ParameterizedTest
    @CsvSource({
        "eva_config, rho, 0.5, at least 1",
        "eva_config, tau, 1.5, between 0 and 1",
        "eva_config, whiten, yes, true or false",
        "eva_config, label_mask_value, 0.5, a whole number",
        "corda_config, corda_method, both, '[ipm, kpm]'",
        "corda_config, cache_file, 3, a string or null",
        "lora_ga_config, direction, BrAr, '[ArBr, A2rBr, ArB2r, random]'",
        "lora_ga_config, scale, large, '[stable, weight_svd, gd_scale, unit]'",
        "lora_ga_config, stable_gamma, 0, above 0",
        "lora_ga_config, stable_gamma, many, a number",
        "loftq_config, loftq_bits, 3, '2, 4 or 8'",
        "loftq_config, loftq_bits, 4294967300, '2, 4 or 8'",
        "loftq_config, loftq_iter, 0, at least 1",
    })
    void wrongValuesAreNamed(String key, String field, String value, String rule) {
        assertThatThrownBy(() -> READERS.get(key).apply(with(key, Map.of(field, parsed(value)))))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessageContaining("LoraConfig." + key + "." + field)
                .hasMessageContaining(rule);
    }

    private static Object parsed(String value) {
        if (value.matches("[0-9]+")) {
            return Long.valueOf(value);
        }
        return value.matches("[0-9.]+") ? (Object) Double.valueOf(value) : value;
    }
}
