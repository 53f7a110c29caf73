package org.lora4j.cli;

import java.io.IOException;
import java.io.PrintWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import java.util.concurrent.Callable;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.AdapterConverter;
import org.lora4j.format.GgufAdapter;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Parameters;
import picocli.CommandLine.Spec;

/** Turns adapters of one layout into another. */
@Command(
        name = "convert",
        description = {
            "Turns an adapter of PEFT's, kohya's, diffusers' or GGUF layout into another; every number keeps its bits.",
            "What the new layout has no place for is refused, with a list of all of it."
        },
        mixinStandardHelpOptions = true)
final class ConvertCommand implements Callable<Integer> {
    /** The layouts an adapter can be written in. */
    enum Layout {
        PEFT,
        KOHYA,
        DIFFUSERS,
        GGUF
    }

    @Spec
    private CommandSpec spec;

    @Parameters(index = "0", paramLabel = "ADAPTER", description = "A folder in PEFT's layout, or a file of another.")
    private Path adapter;

    @Option(names = "--to", required = true, paramLabel = "LAYOUT", description = "peft, kohya, diffusers or gguf.")
    private Layout layout;

    @Option(
            names = {"-o", "--out"},
            required = true,
            paramLabel = "PATH",
            description = "The new folder (peft) or file.")
    private Path out;

    @Option(
            names = "--part",
            paramLabel = "NAME",
            description = "The part of a pipeline, such as lora_unet or unet: which to read, or what to write.")
    private @Nullable String part;

    @Option(
            names = "--base",
            paramLabel = "CHECKPOINT",
            description =
                    "The base model's checkpoint, whose tensors tell the paths of its modules; of GGUF also config.json.")
    private @Nullable Path base;

    @Option(names = "--json", description = "Print the result as JSON.")
    private boolean json;

    @Override
    public Integer call() throws IOException {
        boolean folder = Files.isDirectory(adapter);
        if (layout == Layout.PEFT) {
            if (folder || base == null) {
                throw new ParameterException(
                        spec.commandLine(),
                        folder
                                ? adapter + " is a folder, so in PEFT's layout already"
                                : "name the checkpoint with --base");
            }
            AdapterArgument.toPeft(adapter, part, base, out);
        } else {
            Path peft = adapter;
            if (!folder) {
                throw new ParameterException(
                        spec.commandLine(), adapter + " is a file: convert it to a folder with --to peft first");
            }
            if (layout == Layout.GGUF) {
                if (base == null) {
                    throw new ParameterException(
                            spec.commandLine(), "name the checkpoint with --base: names and heads depend on the model");
                }
                GgufAdapter.fromPeft(peft, base, out);
            }
            String name = part == null ? (layout == Layout.KOHYA ? "lora_unet" : "transformer") : part;
            if (layout == Layout.KOHYA) {
                AdapterConverter.toKohya(Map.of(name, peft), out);
            } else if (layout == Layout.DIFFUSERS) {
                AdapterConverter.toDiffusers(Map.of(name, peft), out);
            }
        }
        PrintWriter text = spec.commandLine().getOut();
        if (json) {
            JsonOut.print(text, Map.of("written", out.toString()));
        } else {
            text.println("written: " + out);
            text.flush();
        }
        return 0;
    }
}
