package org.lora4j.train;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.function.Function;
import org.lora4j.model.causal.Tokenizer;
import tools.jackson.core.JacksonException;
import tools.jackson.databind.DeserializationFeature;
import tools.jackson.databind.json.JsonMapper;

/** Tokenised examples, immutable. */
public final class Dataset {
    private static final JsonMapper JSON = JsonMapper.builder()
            .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
            .build();

    private final List<Sample> samples;

    private Dataset(List<Sample> samples) {
        this.samples = List.copyOf(samples);
    }

    /**
     * Tokenises examples: what the tokenizer puts before a text, the prompt, the completion, the end token. Prompt and
     * completion are tokenised apart, so no token spans both.
     *
     * @param examples at least one
     * @throws IllegalArgumentException if there is no example, or the tokenizer knows no end token
     */
    public static Dataset of(List<Example> examples, Tokenizer tokenizer) {
        Long eos = tokenizer.eosTokenId();
        if (eos == null) {
            throw new IllegalArgumentException(
                    "the tokenizer names no token that ends a text: set eos_token in its tokenizer_config.json");
        }
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
            long[] prompt = encodePrompt.apply(example.prompt());
            long[] completion = encodeCompletion.apply(example.completion());
            long[] ids = new long[prompt.length + completion.length + 1];
            System.arraycopy(prompt, 0, ids, 0, prompt.length);
            System.arraycopy(completion, 0, ids, prompt.length, completion.length);
            ids[ids.length - 1] = eos;
            samples.add(new Sample(ids, prompt.length));
        }
        return new Dataset(samples);
    }

    /**
     * Reads examples from a file with one {@code {"prompt": "...", "completion": "..."}} a line. Empty lines are
     * skipped, other members ignored.
     *
     * @throws IllegalArgumentException naming the file, the line and what is wrong with it
     * @throws IOException if the file cannot be read
     */
    public static List<Example> readJsonl(Path file) throws IOException {
        List<String> lines;
        try {
            lines = Files.readAllLines(file);
        } catch (IOException e) {
            throw new IOException("cannot read the examples of " + file + ": check that it exists", e);
        }
        List<Example> examples = new ArrayList<>();
        for (int i = 0; i < lines.size(); i++) {
            if (!lines.get(i).isBlank()) {
                examples.add(parse(lines.get(i), file + ", line " + (i + 1)));
            }
        }
        return examples;
    }

    static Dataset ofSamples(List<Sample> samples) {
        return new Dataset(samples);
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

    private static Example parse(String line, String where) {
        var rule = ": a line is {\"prompt\": \"...\", \"completion\": \"...\"}";
        try {
            var object = JSON.readTree(line);
            var prompt = object.get("prompt");
            var completion = object.get("completion");
            if (prompt == null || !prompt.isString() || completion == null || !completion.isString()) {
                throw new IllegalArgumentException(where + " lacks the text \"prompt\" or \"completion\"" + rule);
            }
            return new Example(Objects.requireNonNull(prompt.stringValue()), completion.stringValue());
        } catch (JacksonException e) {
            throw new IllegalArgumentException(where + " is not JSON (" + e.getOriginalMessage() + ")" + rule, e);
        }
    }
}
