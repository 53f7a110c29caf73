package org.lora4j.cli;

import java.io.IOException;
import java.io.PrintWriter;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import org.lora4j.merge.CheckpointUnmerge;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;
import picocli.CommandLine.Spec;

/** Restores the original of a merged checkpoint. */
@Command(
        name = "unmerge",
        description = {
            "Makes the original checkpoint again, to the bit, from the merged one, the adapters and the residual that",
            "merge --residual wrote. The new folder is there only when every hash was found to be right."
        },
        mixinStandardHelpOptions = true)
final class UnmergeCommand implements Callable<Integer> {
    @Spec
    private CommandSpec spec;

    @Parameters(index = "0", paramLabel = "CHECKPOINT", description = "Folder of the merged checkpoint.")
    private Path checkpoint;

    @Option(names = "--residual", required = true, paramLabel = "FOLDER", description = "What the merge wrote.")
    private Path residual;

    @Option(
            names = {"-a", "--adapter"},
            paramLabel = "FOLDER",
            description = "The adapters in their order, if they are not where they were.")
    private List<Path> adapters = new ArrayList<>();

    @Option(
            names = {"-o", "--out"},
            required = true,
            paramLabel = "FOLDER",
            description = "The new folder.")
    private Path out;

    @Option(names = "--json", description = "Print the result as JSON.")
    private boolean json;

    @Override
    public Integer call() throws IOException {
        PrintWriter text = spec.commandLine().getOut();
        try (var bar = new ByteBar("unmerge", Terminal.attached() && !json)) {
            CheckpointUnmerge.unmerge(checkpoint, residual, adapters, out, bar);
            bar.close();
            if (json) {
                JsonOut.print(text, Map.of("folder", out.toString(), "seconds", bar.seconds()));
            } else {
                bar.summary(text, "restored into " + out);
            }
        }
        return 0;
    }
}
