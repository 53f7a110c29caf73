package org.lora4j.train;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.BitSet;
import java.util.List;
import java.util.Locale;
import org.jspecify.annotations.Nullable;
import org.lora4j.model.causal.Tokenizer;

/**
 * How a conversation is written as text. These are the common layouts themselves; templates in Jinja are not run. Only what
 * the assistant says is learned, with the mark that ends it.
 */
public enum ChatTemplate {
    /** {@code <|im_start|>role\ncontent<|im_end|>\n}, of Qwen and many others. */
    CHATML("", "<|im_start|>%s\n", "<|im_end|>", "\n"),
    /** {@code <|start_header_id|>role<|end_header_id|>\n\ncontent<|eot_id|>}, of Llama 3. */
    LLAMA3("<|begin_of_text|>", "<|start_header_id|>%s<|end_header_id|>\n\n", "<|eot_id|>", ""),
    /** {@code Role: content\n}, for bases without tokens of their own for conversations; the end token ends a turn. */
    PLAIN("", "%s: ", null, "\n");

    private final String begin;
    private final String header;
    private final @Nullable String end;
    private final String separator;

    ChatTemplate(String begin, String header, @Nullable String end, String separator) {
        this.begin = begin;
        this.header = header;
        this.end = end;
        this.separator = separator;
    }

    /**
     * One turn of a conversation.
     *
     * @param role {@code system}, {@code user} or {@code assistant}
     * @param content what is said
     */
    public record Message(String role, String content) {}

    /**
     * The layout that a checkpoint's own template has.
     *
     * @param folder folder of the checkpoint
     * @return {@link #PLAIN} if the checkpoint has no template
     * @throws IllegalArgumentException if its template is of another layout
     * @throws IOException if a file cannot be read
     */
    public static ChatTemplate of(Path folder) throws IOException {
        for (String name : List.of("chat_template.jinja", "chat_template.json", "tokenizer_config.json")) {
            Path file = folder.resolve(name);
            String text = Files.isRegularFile(file) ? Files.readString(file) : "";
            if (name.equals("tokenizer_config.json") && !text.contains("\"chat_template\"")) {
                continue;
            }
            if (text.contains("<|im_start|>")) {
                return CHATML;
            }
            if (text.contains("<|start_header_id|>")) {
                return LLAMA3;
            }
            if (!text.isEmpty()) {
                throw new IllegalArgumentException(
                        "the chat template in " + file + " is of a layout lora4j does not have:" + " choose one of "
                                + List.of(values()) + ", or write the conversations out as prompt and completion");
            }
        }
        return PLAIN;
    }

    /** A conversation as tokens. */
    Sample encode(List<Message> messages, Tokenizer tokenizer, long eos) {
        List<long[]> pieces = new ArrayList<>();
        BitSet learned = new BitSet();
        int length = add(pieces, 0, begin.isEmpty() ? start(tokenizer) : tokenizer.encode(begin, false));
        for (Message message : messages) {
            String role = this == PLAIN ? capital(message.role()) : message.role();
            length = add(pieces, length, tokenizer.encode(header.formatted(role), false));
            int from = length;
            length = add(pieces, length, tokenizer.encode(message.content(), false));
            length = add(pieces, length, end == null ? new long[] {eos} : tokenizer.encode(end, false));
            if (message.role().equals("assistant")) {
                learned.set(from, length);
            }
            length = add(pieces, length, separator.isEmpty() ? new long[0] : tokenizer.encode(separator, false));
        }
        long[] ids = new long[length];
        int at = 0;
        for (long[] piece : pieces) {
            System.arraycopy(piece, 0, ids, at, piece.length);
            at += piece.length;
        }
        return new Sample(ids, learned);
    }

    /** What the tokenizer puts before a text. */
    private static long[] start(Tokenizer tokenizer) {
        Long bos = tokenizer.bosTokenId();
        long[] empty = tokenizer.encode("", true);
        return bos != null && empty.length > 0 && empty[0] == bos ? new long[] {bos} : new long[0];
    }

    private static int add(List<long[]> pieces, int length, long[] piece) {
        pieces.add(piece);
        return length + piece.length;
    }

    private static String capital(String role) {
        return role.isEmpty() ? role : role.substring(0, 1).toUpperCase(Locale.ROOT) + role.substring(1);
    }
}
