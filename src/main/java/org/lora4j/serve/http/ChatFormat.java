package org.lora4j.serve.http;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.lora4j.format.StrictJson;

/**
 * How the messages of a chat become a prompt: the formats of the common families. A checkpoint's own template is a program in
 * Jinja, which is recognised by the marks it uses but not run.
 */
public enum ChatFormat {
    /** The texts, one a line, for models that know no roles. */
    PLAIN(true),
    /** {@code <|im_start|>role} and {@code <|im_end|>}: Qwen and others. */
    CHATML(false),
    /** {@code <|start_header_id|>role<|end_header_id|>}: Llama 3. */
    LLAMA3(false),
    /** {@code [INST]} and {@code [/INST]}: Mistral, Llama 2. */
    MISTRAL(true);

    private static final long LARGEST_FILE = 16 << 20;

    /** A message. */
    record Message(String role, String content) {}

    private final boolean specialTokens;

    ChatFormat(boolean specialTokens) {
        this.specialTokens = specialTokens;
    }

    /** Whether the tokenizer must add what it puts around texts. */
    boolean specialTokens() {
        return specialTokens;
    }

    /**
     * The format of a checkpoint, by the marks in its chat_template.jinja or in tokenizer_config.json.
     *
     * @throws IOException if a file cannot be read
     */
    public static ChatFormat of(Path checkpoint) throws IOException {
        String template = "";
        Path jinja = checkpoint.resolve("chat_template.jinja");
        Path settings = checkpoint.resolve("tokenizer_config.json");
        if (Files.isRegularFile(jinja)) {
            template = Files.readString(jinja);
        } else if (Files.isRegularFile(settings)) {
            template =
                    String.valueOf(StrictJson.readObject(settings, LARGEST_FILE).get("chat_template"));
        }
        Map<String, ChatFormat> marks =
                Map.of("<|im_start|>", CHATML, "<|start_header_id|>", LLAMA3, "[INST]", MISTRAL);
        for (Map.Entry<String, ChatFormat> mark : marks.entrySet()) {
            if (template.contains(mark.getKey())) {
                return mark.getValue();
            }
        }
        return PLAIN;
    }

    /** The prompt an answer follows. */
    String prompt(List<Message> messages) {
        StringBuilder text = new StringBuilder();
        switch (this) {
            case PLAIN ->
                messages.forEach(each ->
                        text.append(each.content()).append(each.content().endsWith("\n") ? "" : "\n"));
            case CHATML -> {
                messages.forEach(each -> text.append("<|im_start|>")
                        .append(each.role())
                        .append('\n')
                        .append(each.content())
                        .append("<|im_end|>\n"));
                text.append("<|im_start|>assistant\n");
            }
            case LLAMA3 -> {
                text.append("<|begin_of_text|>");
                messages.forEach(each ->
                        header(text, each.role()).append(each.content().strip()).append("<|eot_id|>"));
                header(text, "assistant");
            }
            case MISTRAL -> instructions(text, messages);
        }
        return text.toString();
    }

    private static StringBuilder header(StringBuilder text, String role) {
        return text.append("<|start_header_id|>").append(role).append("<|end_header_id|>\n\n");
    }

    private static void instructions(StringBuilder text, List<Message> messages) {
        StringBuilder said = new StringBuilder();
        for (Message each : messages) {
            if (each.role().equals("assistant")) {
                instruction(text, said).append(' ').append(each.content()).append("</s>");
            } else {
                said.append(said.isEmpty() ? "" : "\n\n").append(each.content());
            }
        }
        instruction(text, said);
    }

    private static StringBuilder instruction(StringBuilder text, StringBuilder said) {
        if (!said.isEmpty()) {
            text.append("[INST] ").append(said).append(" [/INST]");
            said.setLength(0);
        }
        return text;
    }
}
