package org.lora4j.train;

import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.lora4j.model.causal.Tokenizer;

/** Prompts, each with an answer that was preferred and one that was not, tokenised; immutable. */
public final class PreferencePairs {
    private final List<Pair> pairs;

    /** Both start with the same prompt, which is not learned. */
    record Pair(Sample chosen, Sample rejected) {}

    PreferencePairs(List<Pair> pairs) {
        this.pairs = List.copyOf(pairs);
    }

    /**
     * Reads a file with one {@code {"prompt": "...", "chosen": "...", "rejected": "..."}} a line.
     *
     * @param maxLength the tokens after which a text is cut
     * @throws IllegalArgumentException naming the file, the line and what is wrong with it
     * @throws IOException if the file cannot be read
     */
    public static PreferencePairs read(Path file, Tokenizer tokenizer, int maxLength) throws IOException {
        long eos = Dataset.eos(tokenizer);
        List<Pair> pairs = new ArrayList<>();
        Records.read(file, (object, where) -> {
            String[] texts = Records.pair(object, where);
            long[] prompt = tokenizer.encode(texts[0], true);
            if (prompt.length >= maxLength) {
                throw new IllegalArgumentException(where + " has a prompt of " + prompt.length
                        + " tokens, which leaves no answer within " + maxLength
                        + ": raise the maximum length or shorten it");
            }
            pairs.add(new Pair(
                    Dataset.sample(prompt, tokenizer.encode(texts[1], false), eos),
                    Dataset.sample(prompt, tokenizer.encode(texts[2], false), eos)));
        });
        return new PreferencePairs(pairs);
    }

    /** The number of pairs. */
    public int size() {
        return pairs.size();
    }

    List<Pair> pairs() {
        return pairs;
    }
}
