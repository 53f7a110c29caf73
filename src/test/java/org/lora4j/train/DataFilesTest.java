package org.lora4j.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.lora4j.model.causal.Tokenizer;

/** Files of training data: what is learned of them, and what is said of bad ones. */
class DataFilesTest {
    private static final Path BASE = Path.of("src/test/resources/demo/base");
    private static Tokenizer tokenizer;

    @TempDir
    Path folder;

    @BeforeAll
    static void load() throws IOException {
        tokenizer = Tokenizer.load(BASE);
    }

    @AfterAll
    static void close() {
        tokenizer.close();
    }

    private Dataset read(String name, String text, ChatTemplate template, int maxLength) throws IOException {
        Path file = folder.resolve(name);
        Files.writeString(file, text);
        return Dataset.read(file, tokenizer, template, maxLength);
    }

    private static String learned(Sample sample) {
        long[] ids = java.util.stream.IntStream.range(0, sample.ids().length)
                .filter(sample::learned)
                .mapToLong(i -> sample.ids()[i])
                .toArray();
        return tokenizer.decode(ids, false);
    }

    @Test
    void learnsWhatEachKindOfLineSays() throws IOException {
        Dataset data = read("a.jsonl", """
                {"prompt": "Define: cat\\n", "completion": "an animal"}

                {"text": "In the beginning God"}
                {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
                """.strip().replace("},\n", "}, ") + """
                 {"role": "assistant", "content": "Peace be with you"}, {"role": "user", "content": "And?"}, \
                {"role": "assistant", "content": "Go"}]}
                """, ChatTemplate.PLAIN, 64);
        assertThat(data.size()).isEqualTo(3);
        List<Sample> samples = data.samples();
        assertThat(learned(samples.get(0)))
                .contains("an animal")
                .endsWith("</s>")
                .doesNotContain("Define");
        assertThat(learned(samples.get(1))).contains("In the beginning God").endsWith("</s>");
        assertThat(tokenizer.decode(samples.get(2).ids(), true))
                .contains("User")
                .contains("Be brief.");
        assertThat(learned(samples.get(2)).replace("</s>", "|")).matches("\\s*Peace be with you\\|\\s*Go\\|");
    }

    @Test
    void cutsPlainTextIntoPieces() throws IOException {
        String text = "And the earth was without form, and void; ".repeat(20);
        Dataset data = read("a.txt", text, ChatTemplate.PLAIN, 32);
        assertThat(data.samples()).hasSizeGreaterThan(4);
        assertThat(data.samples().subList(0, data.size() - 1))
                .allSatisfy(each -> assertThat(each.ids()).hasSize(32));
        long[] ids = data.samples().stream()
                .flatMapToLong(each -> java.util.Arrays.stream(each.ids()))
                .toArray();
        assertThat(tokenizer.decode(ids, true).strip()).isEqualTo(text.strip());
        assertThat(ids[ids.length - 1]).isEqualTo(tokenizer.eosTokenId());
    }

    @Test
    void chatTemplatesWriteTheirMarks() {
        var messages = List.of(new ChatTemplate.Message("user", "Hi"), new ChatTemplate.Message("assistant", "Peace"));
        for (ChatTemplate template : List.of(ChatTemplate.CHATML, ChatTemplate.LLAMA3)) {
            Sample sample = template.encode(messages, tokenizer, 1);
            String mark = template == ChatTemplate.CHATML ? "<|im_end|>" : "<|eot_id|>";
            assertThat(learned(sample).replace(" ", "")).isEqualTo("Peace" + mark);
            assertThat(tokenizer.decode(sample.ids(), false).replace(" ", ""))
                    .contains("user")
                    .contains("Hi" + mark);
        }
    }

    @Test
    void findsTheTemplateOfACheckpoint() throws IOException {
        assertThat(ChatTemplate.of(BASE)).isEqualTo(ChatTemplate.PLAIN);
        Path config = folder.resolve("tokenizer_config.json");
        Files.writeString(config, "{\"chat_template\": \"{% for m in messages %}<|im_start|>...\"}");
        assertThat(ChatTemplate.of(folder)).isEqualTo(ChatTemplate.CHATML);
        Files.writeString(config, "{\"chat_template\": \"<|start_header_id|>\"}");
        assertThat(ChatTemplate.of(folder)).isEqualTo(ChatTemplate.LLAMA3);
        Files.writeString(config, "{\"chat_template\": \"[INST]\"}");
        assertThatIllegalArgumentException()
                .isThrownBy(() -> ChatTemplate.of(folder))
                .withMessageContaining(config.toString())
                .withMessageContaining("choose one of [CHATML, LLAMA3, PLAIN]");
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            quoteCharacter = '\u0000',
            value = {
                "{\"prompt\": \"a\"}|line 2 lacks the text \"completion\"",
                "{\"prompt\": 1, \"completion\": \"b\"}|line 2 lacks the text \"prompt\"",
                "{\"text\": \"\"}|line 2 has an empty \"text\"",
                "{\"texts\": \"a\"}|line 2 has neither",
                "{\"text\": |line 2 is not JSON",
                "{\"text\": \"a\"} x|line 2 is not JSON",
                "{\"messages\": []}|line 2 has no list \"messages\"",
                "{\"messages\": [{\"role\": \"bot\", \"content\": \"a\"}]}|line 2, message 1 has the role \"bot\": use one of",
                "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}|line 2 has no message of the role \"assistant\"",
                "{\"messages\": [{\"role\": \"user\"}]}|line 2, message 1 lacks the text \"content\"",
            })
    void namesFileLineAndReason(String line, String expected) {
        assertThatIllegalArgumentException()
                .isThrownBy(() -> read("bad.jsonl", "{\"text\": \"fine\"}\n" + line + "\n", ChatTemplate.PLAIN, 64))
                .withMessageStartingWith(folder.resolve("bad.jsonl") + ", " + expected);
    }

    @Test
    void namesTheLineWhosePromptIsTooLong() {
        assertThatIllegalArgumentException()
                .isThrownBy(() -> read(
                        "long.jsonl",
                        "{\"prompt\": \"" + "word ".repeat(20) + "\", \"completion\": \"x\"}\n",
                        ChatTemplate.PLAIN,
                        8))
                .withMessageContaining("long.jsonl, line 1 has a prompt of")
                .withMessageContaining("leaves no completion within 8");
    }

    @Test
    void refusesFilesWithoutText() throws IOException {
        assertThatIllegalArgumentException()
                .isThrownBy(() -> read("empty.jsonl", "\n \n", ChatTemplate.PLAIN, 8))
                .withMessageContaining("empty.jsonl has no examples");
        Path latin = folder.resolve("latin.txt");
        Files.write(latin, "caf\u00e9".getBytes(StandardCharsets.ISO_8859_1));
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Dataset.read(latin, tokenizer, ChatTemplate.PLAIN, 8))
                .withMessageContaining("latin.txt is not UTF-8");
        Files.move(latin, folder.resolve("latin.jsonl"));
        assertThatIllegalArgumentException()
                .isThrownBy(() -> Dataset.read(folder.resolve("latin.jsonl"), tokenizer, ChatTemplate.PLAIN, 8))
                .withMessageContaining("line 1 or near it is not UTF-8");
    }
}
