package org.lora4j.train;

import java.io.IOException;
import java.nio.charset.CharacterCodingException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.function.Function;
import org.lora4j.model.causal.Tokenizer;
import tools.jackson.databind.JsonNode;

/** Tokenised examples, immutable. */
public final class Dataset {
    private final List<Sample> samples;

    private Dataset(List<Sample> samples) {
        this.samples = samples;
    }

    /**
     * Tokenises examples: what the tokenizer puts before a text, the prompt, the completion, the end token. Prompt and
     * completion are tokenised apart, so no token spans both.
     *
     * @param examples at least one
     * @throws IllegalArgumentException if there is no example, or the tokenizer knows no end token
     */
    public static Dataset of(List<Example> examples, Tokenizer tokenizer) {
        long eos = eos(tokenizer);
        return of(examples, text -> tokenizer.encode(text, true), text -> tokenizer.encode(text, false), eos);
    }

    /** Tokenises examples with separate functions for the prompt and the completion. */
    static Dataset of(
            List<Example> examples,
            Function<String, long[]> encodePrompt,
            Function<String, long[]> encodeCompletion,
            long eos) {
        if (examples.isEmpty()) {
            throw new IllegalArgumentException("the dataset has no examples: give it at least one");
        }
        List<Sample> samples = new ArrayList<>();
        for (Example example : examples) {
            samples.add(
                    sample(encodePrompt.apply(example.prompt()), encodeCompletion.apply(example.completion()), eos));
        }
        return new Dataset(List.copyOf(samples));
    }

    /**
     * Reads examples from a file with one {@code {"prompt": "...", "completion": "..."}} a line. Empty lines are
     * skipped, other members ignored.
     *
     * @throws IllegalArgumentException naming the file, the line and what is wrong with it
     * @throws IOException if the file cannot be read
     */
    public static List<Example> readJsonl(Path file) throws IOException {
        List<Example> examples = new ArrayList<>();
        Records.read(file, (object, where) -> examples.add(Records.example(object, where)));
        return examples;
    }

    /**
     * Reads a file of examples.
     *
     * <p>A line of a {@code .jsonl} file has a prompt and a completion, which is learned; a text, all of which is learned; or
     * messages, of which what the assistant says is learned. Another file is one plain text: cut into pieces of {@code
     * maxLength} tokens, all learned.
     *
     * @param template how messages are written
     * @throws IllegalArgumentException naming the file, the line and what is wrong with it
     * @throws IOException if the file cannot be read
     */
    public static Dataset read(Path file, Tokenizer tokenizer, ChatTemplate template, int maxLength)
            throws IOException {
        long eos = eos(tokenizer);
        List<Sample> samples = new ArrayList<>();
        if (isJsonl(file)) {
            Records.read(file, (object, where) -> samples.add(encode(object, where, tokenizer, template, maxLength)));
        } else {
            pieces(file, tokenizer, maxLength, eos, samples);
        }
        return new Dataset(List.copyOf(samples));
    }

    /**
     * As {@link #read}, for a {@code .jsonl} file larger than memory: its lines are checked once, then read and tokenised
     * whenever a batch needs them. The file must stay as it is, and the tokenizer open, while the dataset is in use.
     *
     * @throws IllegalArgumentException naming the file, the line and what is wrong with it, or if it is plain text
     * @throws IOException if the file cannot be read
     */
    public static Dataset stream(Path file, Tokenizer tokenizer, ChatTemplate template, int maxLength)
            throws IOException {
        if (!isJsonl(file)) {
            throw new IllegalArgumentException(
                    file + " cannot be streamed: only .jsonl files can, which have an example a line");
        }
        eos(tokenizer);
        return new Dataset(new StreamedSamples(file, new StreamedSamples.Encoder() {
            @Override
            public Sample encode(String line, String where) {
                return Dataset.encode(Records.parse(line, where), where, tokenizer, template, maxLength);
            }

            @Override
            public void check(String line, String where) {
                Records.check(Records.parse(line, where), where);
            }
        }));
    }

    private static boolean isJsonl(Path file) {
        return file.toString().endsWith(".jsonl") || file.toString().endsWith(".json");
    }

    private static Sample encode(
            JsonNode object, String where, Tokenizer tokenizer, ChatTemplate template, int maxLength) {
        Records.check(object, where);
        long eos = eos(tokenizer);
        if (object.has("messages")) {
            return template.encode(Records.messages(object, where), tokenizer, eos);
        }
        if (object.has("text")) {
            return new Sample(joined(tokenizer.encode(Records.text(object, where), true), eos), 0);
        }
        Example example = Records.example(object, where);
        long[] prompt = tokenizer.encode(example.prompt(), true);
        if (prompt.length >= maxLength) {
            throw new IllegalArgumentException(where + " has a prompt of " + prompt.length
                    + " tokens, which leaves no completion within " + maxLength
                    + ": raise the maximum length or shorten it");
        }
        return sample(prompt, tokenizer.encode(example.completion(), false), eos);
    }

    private static void pieces(Path file, Tokenizer tokenizer, int maxLength, long eos, List<Sample> samples)
            throws IOException {
        String text;
        try {
            text = Files.readString(file);
        } catch (CharacterCodingException e) {
            throw new IllegalArgumentException(file + " is not UTF-8: convert it", e);
        } catch (IOException e) {
            throw new IOException("cannot read the text of " + file + ": check that it exists", e);
        }
        long[] ids = joined(tokenizer.encode(text, true), eos);
        for (int from = 0; from + 1 < ids.length; from += maxLength) {
            samples.add(new Sample(Arrays.copyOfRange(ids, from, Math.min(from + maxLength, ids.length)), 0));
        }
        if (samples.isEmpty()) {
            throw new IllegalArgumentException(file + " has no text: name a file with some");
        }
    }

    private static long[] joined(long[] ids, long eos) {
        boolean ended = ids.length > 0 && ids[ids.length - 1] == eos;
        long[] all = Arrays.copyOf(ids, ids.length + (ended ? 0 : 1));
        all[all.length - 1] = eos;
        return all;
    }

    static Sample sample(long[] prompt, long[] completion, long eos) {
        long[] ids = new long[prompt.length + completion.length + 1];
        System.arraycopy(prompt, 0, ids, 0, prompt.length);
        System.arraycopy(completion, 0, ids, prompt.length, completion.length);
        ids[ids.length - 1] = eos;
        return new Sample(ids, prompt.length);
    }

    static long eos(Tokenizer tokenizer) {
        Long eos = tokenizer.eosTokenId();
        if (eos == null) {
            throw new IllegalArgumentException(
                    "the tokenizer names no token that ends a text: set eos_token in its tokenizer_config.json");
        }
        return eos;
    }

    /** The examples of several datasets, one after another. */
    public static Dataset concat(List<Dataset> parts) {
        return new Dataset(parts.stream().flatMap(each -> each.samples.stream()).toList());
    }

    static Dataset ofSamples(List<Sample> samples) {
        return new Dataset(List.copyOf(samples));
    }

    /** The number of examples. */
    public int size() {
        return samples.size();
    }

    List<Sample> samples() {
        return samples;
    }

    /** A dataset of the first examples of this one, all of them if there are fewer. */
    public Dataset first(int count) {
        return new Dataset(samples.subList(0, Math.min(Math.max(1, count), samples.size())));
    }
}
