package org.lora4j.serve.http;

import static org.assertj.core.api.Assertions.assertThat;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.model.causal.ServedModels;
import org.lora4j.model.causal.Tokenizer;

/** Texts that come in parts: tokens to text, stop texts, and messages to prompts. */
class TextPartsTest {
    @ParameterizedTest
    @ValueSource(
            strings = {
                "Thy word",
                "a \uD83D\uDE00\uD83D\uDE00 \u00E9\u4E2D\u6587 end",
                " ",
                "\n\n\u0001",
                "  two  spaces "
            })
    void tokensBecomeTheTextTheyAreOf(String text) throws Exception {
        try (Tokenizer tokenizer = Tokenizer.load(ServedModels.DEMO)) {
            long[] prompt = tokenizer.encode("In the beginning", true);
            TextDecoder decoder = new TextDecoder(tokenizer, prompt);
            StringBuilder told = new StringBuilder();
            for (long id : tokenizer.encode(text, false)) {
                String part = decoder.add(id);
                assertThat(part).doesNotContain("\uFFFD");
                told.append(part);
            }
            told.append(decoder.end());
            assertThat(told.toString()).isEqualTo(text);
        }
    }

    /** Bytes that are no characters come out as such, but they come out. */
    @Test
    void anyTokensComeToAnEnd() throws Exception {
        try (Tokenizer tokenizer = Tokenizer.load(ServedModels.DEMO)) {
            for (long seed = 0; seed < 20; seed++) {
                Random random = new Random(seed);
                long[] ids = random.longs(60, 3, 300).toArray();
                TextDecoder decoder = new TextDecoder(tokenizer, new long[] {0});
                StringBuilder told = new StringBuilder();
                for (long id : ids) {
                    told.append(decoder.add(id));
                }
                told.append(decoder.end());
                String clean = told.toString().replace("\uFFFD", "");
                assertThat(clean).isEqualTo(tokenizer.decode(ids, true).replace("\uFFFD", ""));
            }
        }
    }

    @Test
    void stopTextsAreFoundHoweverTheTextComes() {
        String text = "abcabdabcabcx-end";
        for (String stop : List.of("abcx", "d", "abcabcx", "end", "aa", "cabd")) {
            int at = text.indexOf(stop);
            String expected = at < 0 ? text : text.substring(0, at);
            for (int size = 1; size <= text.length(); size++) {
                StopText stops = new StopText(List.of("nowhere", stop));
                StringBuilder told = new StringBuilder();
                for (int i = 0; i < text.length() && !stops.stopped(); i += size) {
                    told.append(stops.add(text.substring(i, Math.min(text.length(), i + size))));
                }
                told.append(stops.end());
                assertThat(told.toString()).as("%s by %d", stop, size).isEqualTo(expected);
                assertThat(stops.stopped()).isEqualTo(at >= 0);
            }
        }
    }

    @Test
    void theEarliestOfSeveralStopsCounts() {
        StopText stops = new StopText(List.of("late", "a"));
        assertThat(stops.add("xx late")).isEqualTo("xx ");
        assertThat(new StopText(List.of()).add("all")).isEqualTo("all");
    }

    @Test
    void messagesBecomePromptsOfTheFamilies(@TempDir Path folder) throws Exception {
        List<ChatFormat.Message> messages = List.of(
                new ChatFormat.Message("system", "Be brief."),
                new ChatFormat.Message("user", "Hello"),
                new ChatFormat.Message("assistant", "Hi"),
                new ChatFormat.Message("user", "Bye"));
        assertThat(ChatFormat.PLAIN.prompt(messages)).isEqualTo("Be brief.\nHello\nHi\nBye\n");
        assertThat(ChatFormat.CHATML.prompt(messages))
                .startsWith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n")
                .endsWith("<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n");
        assertThat(ChatFormat.LLAMA3.prompt(messages))
                .startsWith("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>")
                .endsWith("Bye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n");
        assertThat(ChatFormat.MISTRAL.prompt(messages))
                .isEqualTo("[INST] Be brief.\n\nHello [/INST] Hi</s>[INST] Bye [/INST]");
        assertThat(ChatFormat.of(folder)).isEqualTo(ChatFormat.PLAIN);
        Files.writeString(folder.resolve("tokenizer_config.json"), "{\"chat_template\": \"{{ '<|im_start|>' }}\"}");
        assertThat(ChatFormat.of(folder)).isEqualTo(ChatFormat.CHATML);
        Files.writeString(folder.resolve("chat_template.jinja"), "{{ '<|start_header_id|>' }}");
        assertThat(ChatFormat.of(folder)).isEqualTo(ChatFormat.LLAMA3);
    }
}
