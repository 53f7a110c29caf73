package org.lora4j.model.causal;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.lora4j.format.FormatException;

class TokenizerTest {
    private static final String WORDS = """
            {"version": "1.0", "truncation": {"max_length": 2, "strategy": "LongestFirst", "stride": 0,
               "direction": "Right"}, "padding": null,
             "added_tokens": [
               {"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true},
               {"id": 1, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true}],
             "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
             "post_processor": {"type": "TemplateProcessing",
               "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
               "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
               "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
             "decoder": null,
             "model": {"type": "WordLevel", "unk_token": "?",
               "vocab": {"<s>": 0, "</s>": 1, "?": 2, "in": 3, "the": 4, "beginning": 5, "größe": 6}}}
            """;

    @TempDir
    Path folder;

    @BeforeEach
    void write() throws IOException {
        Files.writeString(folder.resolve("tokenizer.json"), WORDS);
    }

    @Test
    void textsGoToIdsAndBack() throws IOException {
        try (Tokenizer tokenizer = Tokenizer.load(folder)) {
            assertThat(tokenizer.encode("in the beginning größe of", false)).containsExactly(3, 4, 5, 6, 2);
            assertThat(tokenizer.encode("in the beginning", true))
                    .as("a beginning, and nothing cut off")
                    .containsExactly(0, 3, 4, 5);
            assertThat(tokenizer.encode("", false)).isEmpty();
            long[] ids = {0, 3, 4, 6, 1};
            assertThat(tokenizer.decode(ids, true)).isEqualTo("in the größe");
            assertThat(tokenizer.decode(ids, false)).isEqualTo("<s> in the größe </s>");
            assertThat(tokenizer.decode(new long[0], false)).isEmpty();
        }
    }

    @Test
    void specialTokensAreFoundInTheFilesBesideIt() throws IOException {
        try (Tokenizer tokenizer = Tokenizer.load(folder)) {
            assertThat(tokenizer.bosTokenId()).isNull();
            assertThat(tokenizer.eosTokenId()).isNull();
        }
        Files.writeString(
                folder.resolve("config.json"), "{\"bos_token_id\": 9, \"eos_token_id\": [8, 7], \"pad_token_id\": 5}");
        Files.writeString(
                folder.resolve("tokenizer_config.json"),
                "{\"bos_token\": \"<s>\", \"eos_token\": {\"content\": \"</s>\", \"lstrip\": false}}");
        try (Tokenizer tokenizer = Tokenizer.load(folder)) {
            assertThat(tokenizer.bosTokenId()).isZero();
            assertThat(tokenizer.eosTokenId()).isEqualTo(1);
            assertThat(tokenizer.padTokenId()).isEqualTo(5);
        }
        Files.delete(folder.resolve("tokenizer_config.json"));
        try (Tokenizer tokenizer = Tokenizer.load(folder)) {
            assertThat(tokenizer.bosTokenId()).isEqualTo(9);
            assertThat(tokenizer.eosTokenId()).isEqualTo(8);
        }
    }

    @Test
    void absentAndBrokenFilesAreNamed() throws IOException {
        Files.writeString(folder.resolve("tokenizer.json"), "{\"model\": 3}");
        assertThatThrownBy(() -> Tokenizer.load(folder))
                .isInstanceOf(FormatException.class)
                .hasMessageContaining("tokenizer.json");
        Files.delete(folder.resolve("tokenizer.json"));
        assertThatThrownBy(() -> Tokenizer.load(folder))
                .isInstanceOf(NoSuchFileException.class)
                .hasMessageContaining("save the tokenizer");
    }
}
