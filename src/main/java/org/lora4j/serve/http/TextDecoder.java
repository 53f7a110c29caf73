package org.lora4j.serve.http;

import java.util.Arrays;
import org.lora4j.model.causal.Tokenizer;

/**
 * Turns tokens into text as they come. A token may be part of a character, or of a text that needs the tokens before it, so
 * text comes out once it is sure; no token is decoded more than a few times.
 */
final class TextDecoder {
    /** Tokens of the prompt the first text is decoded behind, so that a space between them is kept. */
    private static final int BEFORE = 6;

    /** A character takes at most four byte tokens: what is incomplete after this many is no character. */
    private static final int LONGEST_CHARACTER = 8;

    private final Tokenizer tokenizer;
    private long[] window;
    /** How many tokens of the window are told already. */
    private int told;

    private int length;

    TextDecoder(Tokenizer tokenizer, long[] prompt) {
        this.tokenizer = tokenizer;
        this.window =
                Arrays.copyOfRange(prompt, Math.max(0, prompt.length - BEFORE), prompt.length + LONGEST_CHARACTER);
        this.told = Math.min(BEFORE, prompt.length);
        this.length = told;
    }

    /** The text a token completes; often its own, none if more tokens are needed. */
    String add(long token) {
        if (length == window.length) {
            window = Arrays.copyOf(window, 2 * length);
        }
        window[length++] = token;
        return tell(length - told > LONGEST_CHARACTER);
    }

    /** What is left when no token follows. */
    String end() {
        return length == told ? "" : tell(true);
    }

    private String tell(boolean all) {
        String before = decode(0, told);
        String now = decode(0, length);
        if (now.length() <= before.length() || (now.endsWith("\uFFFD") && !all)) {
            return "";
        }
        window = Arrays.copyOfRange(window, told, length + LONGEST_CHARACTER);
        length -= told;
        told = length;
        return now.substring(before.length());
    }

    private String decode(int from, int to) {
        return tokenizer.decode(Arrays.copyOfRange(window, from, to), true);
    }
}
