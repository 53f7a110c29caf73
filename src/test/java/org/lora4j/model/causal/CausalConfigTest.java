package org.lora4j.model.causal;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.lora4j.model.causal.TinyModels.with;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

class CausalConfigTest {
    private static final String MISTRAL = "\"architectures\": [\"MistralForCausalLM\"]";
    private static final String QWEN2 = "\"architectures\": [\"Qwen2ForCausalLM\"]";
    private static final String QWEN3 = "\"architectures\": [\"Qwen3ForCausalLM\"]";

    private static CausalConfig parse(String... fields) {
        return CausalConfig.parse(with(fields));
    }

    @Test
    void readsWhatIsWritten() {
        CausalConfig config = parse();
        assertThat(config.family()).isEqualTo(Family.LLAMA);
        assertThat(config.vocabSize()).isEqualTo(41);
        assertThat(config.hiddenSize()).isEqualTo(24);
        assertThat(config.intermediateSize()).isEqualTo(37);
        assertThat(config.layers()).isEqualTo(3);
        assertThat(config.heads()).isEqualTo(6);
        assertThat(config.kvHeads()).isEqualTo(2);
        assertThat(config.headDim()).isEqualTo(4);
        assertThat(config.maxPositions()).isEqualTo(64);
        assertThat(config.rmsNormEps()).isEqualTo(1e-5);
        assertThat(config.activation()).isEqualTo(Activation.SILU);
        assertThat(config.rope()).isEqualTo(RopeScaling.plain(10_000));
        assertThat(config.eosTokenIds()).isEmpty();
        assertThat(config.bosTokenId()).isNull();
    }

    @Test
    void absentFieldsTakeTheDefaultsOfTheFamily() {
        assertThat(parse("\"head_dim\": null").headDim()).isEqualTo(4);
        CausalConfig mistral = CausalConfig.parse("""
                {"model_type": "mistral", "vocab_size": 9, "hidden_size": 32, "intermediate_size": 7,
                 "num_hidden_layers": 2, "num_attention_heads": 16}""");
        assertThat(mistral.kvHeads()).isEqualTo(8);
        assertThat(mistral.slidingWindow()).isEqualTo(4096);
        assertThat(mistral.slidingLayers()).containsExactly(true, true);
        assertThat(mistral.maxPositions()).isEqualTo(131_072);
        assertThat(mistral.rmsNormEps()).isEqualTo(1e-6);
        assertThat(mistral.bosTokenId()).isEqualTo(1);
        assertThat(mistral.eosTokenIds()).containsExactly(2L);
        assertThat(mistral.padTokenId()).isNull();
        CausalConfig qwen3 = CausalConfig.parse("""
                {"model_type": "qwen3", "vocab_size": 9, "hidden_size": 32, "intermediate_size": 7,
                 "num_hidden_layers": 2, "num_attention_heads": 32}""");
        assertThat(qwen3.headDim()).isEqualTo(128);
        assertThat(qwen3.kvHeads()).isEqualTo(32);
        assertThat(qwen3.qkNorm()).isTrue();
        assertThat(qwen3.eosTokenIds()).isEmpty();
        assertThat(qwen3.slidingLayers()).containsExactly(false, false);
    }

    @Test
    void biasesFollowTheFamily() {
        CausalConfig llama = parse("\"attention_bias\": true", "\"mlp_bias\": true");
        assertThat(List.of(llama.attentionInputBias(), llama.attentionOutputBias(), llama.mlpBias()))
                .containsExactly(true, true, true);
        CausalConfig qwen2 = parse(QWEN2, "\"model_type\": \"qwen2\"");
        assertThat(List.of(qwen2.attentionInputBias(), qwen2.attentionOutputBias(), qwen2.mlpBias()))
                .containsExactly(true, false, false);
        CausalConfig qwen3 = parse(QWEN3, "\"model_type\": \"qwen3\"", "\"attention_bias\": true");
        assertThat(List.of(qwen3.attentionInputBias(), qwen3.attentionOutputBias(), qwen3.mlpBias()))
                .containsExactly(true, true, false);
        CausalConfig mistral = parse(MISTRAL, "\"model_type\": \"mistral\"");
        assertThat(mistral.attentionInputBias()).isFalse();
    }

    @Test
    void windowsFollowTheFamily() {
        String[] qwen = {
            QWEN2, "\"model_type\": \"qwen2\"", "\"use_sliding_window\": true", "\"max_window_layers\": 1", ""
        };
        qwen[4] = "\"sliding_window\": 5";
        assertThat(parse(qwen).slidingLayers()).containsExactly(false, true, true);
        assertThat(parse(qwen).slidingWindow()).isEqualTo(5);
        qwen[2] = "\"use_sliding_window\": false";
        assertThat(parse(qwen).slidingLayers()).containsExactly(false, false, false);
        qwen[2] = "\"use_sliding_window\": true";
        qwen[3] = "\"layer_types\": [\"sliding_attention\", \"full_attention\", \"sliding_attention\"]";
        assertThat(parse(qwen).slidingLayers()).containsExactly(true, false, true);
        assertThat(parse(MISTRAL, "\"model_type\": \"mistral\"", "\"sliding_window\": null")
                        .slidingWindow())
                .isZero();
        assertThat(parse("\"sliding_window\": 5").slidingWindow())
                .as("Llama has no window")
                .isZero();
    }

    @Test
    void ropeIsReadInBothStyles() {
        RopeScaling llama3 = new RopeScaling(RopeScaling.Type.LLAMA3, 5e5, 8, 1, 4, 32);
        String inner =
                "\"factor\": 8.0, \"low_freq_factor\": 1.0, \"high_freq_factor\": 4, \"original_max_position_embeddings\": 32";
        assertThat(parse("\"rope_theta\": 500000.0", "\"rope_scaling\": {\"rope_type\": \"llama3\", " + inner + "}")
                        .rope())
                .isEqualTo(llama3);
        assertThat(parse("\"rope_parameters\": {\"rope_theta\": 500000, \"rope_type\": \"llama3\", " + inner + "}")
                        .rope())
                .isEqualTo(llama3);
        assertThat(parse("\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2}")
                        .rope())
                .isEqualTo(RopeScaling.linear(10_000, 2));
        assertThat(parse("\"rope_theta\": 5", "\"rope_parameters\": {\"rope_theta\": 77}")
                        .rope())
                .isEqualTo(RopeScaling.plain(77));
        assertThat(parse("\"rope_theta\": 5").rope()).isEqualTo(RopeScaling.plain(5));
        assertThat(parse("\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1,"
                                + " \"high_freq_factor\": 4}")
                        .rope()
                        .originalMaxPositions())
                .isEqualTo(64);
    }

    static Stream<Arguments> defects() {
        return Stream.of(
                Arguments.of("\"model_type\": \"gpt2\"", "model_type is gpt2 but must be one of llama"),
                Arguments.of("\"architectures\": [\"LlamaModel\"]", "architectures"),
                Arguments.of("\"architectures\": [\"Qwen2ForCausalLM\"]", "architectures"),
                Arguments.of("\"architectures\": \"LlamaForCausalLM\"", "architectures"),
                Arguments.of("\"vocab_size\": 0", "vocab_size is 0 but must be at least 1"),
                Arguments.of("\"vocab_size\": 4.5", "vocab_size is 4.5 but must be a whole number"),
                Arguments.of("\"vocab_size\": \"41\"", "vocab_size"),
                Arguments.of("\"vocab_size\": 99999999999", "vocab_size"),
                Arguments.of("\"hidden_size\": 25", "hidden_size is 25 but must be a multiple"),
                Arguments.of("\"hidden_size\": null", "hidden_size"),
                Arguments.of("\"num_hidden_layers\": -1", "num_hidden_layers"),
                Arguments.of("\"num_attention_heads\": 0", "num_attention_heads"),
                Arguments.of("\"num_key_value_heads\": 4", "num_key_value_heads is 4 but must be a divisor"),
                Arguments.of("\"head_dim\": 3", "head_dim is 3 but must be even"),
                Arguments.of("\"hidden_act\": \"xielu\"", "hidden_act is xielu but must be one of silu"),
                Arguments.of("\"rms_norm_eps\": 0", "rms_norm_eps"),
                Arguments.of("\"attention_dropout\": 1.0", "attention_dropout"),
                Arguments.of("\"tie_word_embeddings\": 1", "tie_word_embeddings is 1 but must be true or false"),
                Arguments.of("\"layer_types\": [\"full_attention\"]", "layer_types"),
                Arguments.of(
                        "\"layer_types\": [\"full_attention\", \"full_attention\", \"sliding_attention\"]",
                        "layer_types"),
                Arguments.of("\"layer_types\": [\"linear_attention\"]", "layer_types"),
                Arguments.of("\"quantization_config\": {\"bits\": 4}", "quantization_config"),
                Arguments.of("\"partial_rotary_factor\": 0.5", "partial_rotary_factor is 0.5 but must be 1"),
                Arguments.of("\"rope_theta\": 0", "rope_theta"),
                Arguments.of("\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 2}", "rope_type is yarn"),
                Arguments.of("\"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2}", "type is dynamic"),
                Arguments.of("\"rope_scaling\": {\"type\": \"linear\"}", "factor is absent but must be a number"),
                Arguments.of("\"rope_scaling\": {\"type\": \"linear\", \"factor\": 0.5}", "factor"),
                Arguments.of(
                        "\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 2, \"low_freq_factor\": 4, \"high_freq_factor\": 4}",
                        "high_freq_factor"),
                Arguments.of(
                        "\"rope_parameters\": {\"full_attention\": {\"rope_type\": \"default\"}}", "rope_parameters"),
                Arguments.of("\"eos_token_id\": [1, \"2\"]", "eos_token_id"),
                Arguments.of("\"eos_token_id\": -2", "eos_token_id"));
    }

    @ParameterizedTest
    @MethodSource("defects")
    void defectsAreNamed(String field, String message) {
        assertThatThrownBy(() -> parse(field))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessageStartingWith("config.json: ")
                .hasMessageContaining(message);
    }

    @Test
    void slidingLayersNeedAWindow() {
        String types = "\"layer_types\": [\"sliding_attention\", \"full_attention\", \"full_attention\"]";
        assertThatThrownBy(() -> parse(QWEN3, "\"model_type\": \"qwen3\"", types))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessageContaining("sliding_window");
    }

    @Test
    void theTypeMayBeNamedByTheArchitecture() {
        String json = with(QWEN2).replace("\"model_type\": \"llama\",", "");
        assertThat(CausalConfig.parse(json).family()).isEqualTo(Family.QWEN2);
        assertThatThrownBy(() -> CausalConfig.parse("{\"vocab_size\": 4}"))
                .hasMessageContaining("model_type is absent but must be one of llama, mistral, qwen2, qwen3");
        assertThatThrownBy(() -> CausalConfig.parse("[1]")).isInstanceOf(IllegalArgumentException.class);
        assertThatThrownBy(() -> CausalConfig.parse("{\"a\": ")).isInstanceOf(IllegalArgumentException.class);
    }

    @Test
    void specialTokensComeFromTheGenerationConfigFirst(@TempDir Path folder) throws IOException {
        Files.writeString(folder.resolve("config.json"), with("\"eos_token_id\": 3", "\"bos_token_id\": 4"));
        assertThat(CausalConfig.read(folder).eosTokenIds()).containsExactly(3L);
        Files.writeString(folder.resolve("generation_config.json"), "{\"eos_token_id\": [5, 6], \"pad_token_id\": 7}");
        CausalConfig config = CausalConfig.read(folder);
        assertThat(config.eosTokenIds()).containsExactly(5L, 6L);
        assertThat(config.bosTokenId()).isEqualTo(4);
        assertThat(config.padTokenId()).isEqualTo(7);
    }
}
