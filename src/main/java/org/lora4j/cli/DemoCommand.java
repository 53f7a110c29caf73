package org.lora4j.cli;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.Callable;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Spec;

/** The tour of the library on a small real model. */
@Command(
        name = "demo",
        description = {
            "Trains, saves, mixes and merges two adapters on a small real language model, and checks each step.",
            "",
            "The base is a Llama-style model of a few million weights, trained on the King James Bible and on"
                    + " WordNet. The demo:",
            "  1. loads it and measures its loss on held-out word definitions and on held-out verses;",
            "  2. trains two LoRA adapters, \"definitions\" and \"verses\", and measures them on both tasks;",
            "  3. prints what the base and each adapter write;",
            "  4. saves both adapters in PEFT's format, reloads them into a fresh model, compares the logits;",
            "  5. runs one batch whose rows use adapter 1, adapter 2 and no adapter, row by row against single runs;",
            "  6. combines both adapters into a third and measures it;",
            "  7. merges one into the weights, unmerges it, and proves by SHA-256 that every weight is as before;",
            "  8. writes the merged model in Hugging Face format, reloads it, compares the logits.",
            "",
            "It ends with a summary table, writes summary.json and report.html (with the loss plot) to the output"
                    + " folder, and exits with 1 if any check failed.",
            ""
        },
        mixinStandardHelpOptions = true,
        sortOptions = false)
final class DemoCommand implements Callable<Integer> {
    @Spec
    private CommandSpec spec;

    @Option(
            names = "--out",
            paramLabel = "DIR",
            defaultValue = "demo-out",
            description = "Folder for adapters, merged model and report. Default: ${DEFAULT-VALUE}")
    private Path out;

    @Option(names = "--base", paramLabel = "DIR", description = "Base model. Default: the one in the source tree")
    private @Nullable Path base;

    @Option(
            names = "--tasks",
            paramLabel = "DIR",
            description = "Folder with {definitions,verses}.{train,heldout}.jsonl. Default: the source tree's")
    private @Nullable Path tasks;

    @Option(
            names = "--steps",
            paramLabel = "N",
            defaultValue = "150",
            description = "Optimiser steps for each adapter. Default: ${DEFAULT-VALUE}")
    private int steps;

    @Option(
            names = "--rank",
            paramLabel = "R",
            defaultValue = "8",
            description = "Rank of the adapters. Default: ${DEFAULT-VALUE}")
    private int rank;

    @Option(
            names = "--seed",
            paramLabel = "S",
            defaultValue = "1",
            description = "Seed of all random numbers. Default: ${DEFAULT-VALUE}")
    private long seed;

    @Override
    public Integer call() throws IOException {
        if (steps < 1) {
            throw new ParameterException(spec.commandLine(), "--steps is " + steps + " but must be 1 or more");
        }
        if (rank < 1) {
            throw new ParameterException(spec.commandLine(), "--rank is " + rank + " but must be 1 or more");
        }
        Path home = Path.of(System.getProperty("lora4j.home", ""), "src", "test", "resources", "demo");
        var settings = new DemoSettings(
                folder("--base", base == null ? home.resolve("base") : base),
                folder("--tasks", tasks == null ? home.resolve("tasks") : tasks),
                out,
                steps,
                rank,
                seed);
        var terminal = new Terminal(spec.commandLine().getOut(), Terminal.attached());
        return new Demo(settings, terminal).run() ? 0 : 1;
    }

    private Path folder(String option, Path path) {
        if (!Files.isDirectory(path)) {
            throw new ParameterException(
                    spec.commandLine(), option + ": " + path + " is no folder; name one that holds the files");
        }
        return path;
    }
}
