package org.lora4j.cli;

import java.io.IOException;
import java.io.PrintWriter;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.Callable;
import org.jspecify.annotations.Nullable;
import org.lora4j.merge.CheckpointMerge;
import org.lora4j.merge.MergeManifest;
import org.lora4j.merge.MergeOptions;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Spec;

/** Merges adapters into a checkpoint. */
@Command(
        name = "merge",
        description =
                "Merges adapters into a checkpoint without loading a model. The new folder is there when it is whole,"
                        + " with merge-manifest.json; an interrupted merge continues with --resume. Memory does not grow with the"
                        + " model.",
        mixinStandardHelpOptions = true)
final class MergeCommand implements Callable<Integer> {
    @Spec
    private CommandSpec spec;

    @Mixin
    private MergeArguments arguments;

    @Option(
            names = {"-o", "--out"},
            paramLabel = "FOLDER",
            description = "The new folder.")
    private @Nullable Path out;

    @Option(
            names = "--in-place",
            description = "Overwrite the changed tensors of the checkpoint itself; a failure leaves it as it was.")
    private boolean inPlace;

    @Option(
            names = "--resume",
            description =
                    "Continue an interrupted merge of the same inputs; in place: take it back and start again, unless it"
                            + " was finished.")
    private boolean resume;

    @Option(names = "--rollback", description = "Only take back an interrupted merge in place.")
    private boolean rollback;

    @Option(
            names = "--residual",
            paramLabel = "FOLDER",
            description = "Also write what unmerge needs to restore the original bits.")
    private @Nullable Path residual;

    @Option(names = "--json", description = "Print the result as JSON.")
    private boolean json;

    @Override
    public Integer call() throws IOException {
        PrintWriter text = spec.commandLine().getOut();
        if ((out == null) != (inPlace || rollback)) {
            throw new ParameterException(spec.commandLine(), "name the new folder with --out, or choose --in-place");
        }
        if (rollback) {
            boolean done = CheckpointMerge.rollBack(arguments.checkpoint);
            report(text, Map.of("rolled_back", done), done ? "taken back" : "there was nothing to take back");
            return 0;
        }
        arguments.check(spec);
        try (var folders = new AdapterArgument.Folders(arguments.adapters, arguments.checkpoint);
                var bar = new ByteBar("merge", Terminal.attached() && !json)) {
            MergeOptions options = arguments.options(folders.adapters(), residual);
            MergeManifest manifest = out == null
                    ? CheckpointMerge.mergeInPlace(options, resume, bar)
                    : CheckpointMerge.merge(options, out, resume, bar);
            bar.close();
            Map<String, Object> result = new LinkedHashMap<>();
            result.put("folder", String.valueOf(out == null ? arguments.checkpoint : out));
            result.put("seconds", bar.seconds());
            result.put("manifest", manifest.json());
            if (json) {
                JsonOut.print(text, result);
            } else {
                bar.summary(text, "merged into " + (out == null ? arguments.checkpoint : out));
            }
        }
        return 0;
    }

    private void report(PrintWriter text, Object result, String line) {
        if (json) {
            JsonOut.print(text, result);
        } else {
            text.println(line);
        }
        text.flush();
    }
}
