package org.lora4j.cli;

import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import org.lora4j.model.causal.Tokenizer;
import org.lora4j.train.Dataset;
import org.lora4j.train.Example;

/**
 * One of the demo's tasks; its adapter has the same name.
 *
 * @param name such as {@code verses}
 * @param train what the adapter learns
 * @param heldOut what it is measured on
 * @param examples the held-out examples as text
 */
record DemoTask(String name, Dataset train, Dataset heldOut, List<Example> examples) {
    /** Reads {@code <name>.train.jsonl} and {@code <name>.heldout.jsonl}. */
    static DemoTask read(Path folder, String name, Tokenizer tokenizer) throws IOException {
        List<Example> train = Dataset.readJsonl(folder.resolve(name + ".train.jsonl"));
        List<Example> heldOut = Dataset.readJsonl(folder.resolve(name + ".heldout.jsonl"));
        return new DemoTask(name, Dataset.of(train, tokenizer), Dataset.of(heldOut, tokenizer), heldOut);
    }

    /** Two held-out prompts to write from. */
    List<String> prompts() {
        return examples.stream().limit(2).map(Example::prompt).toList();
    }
}
