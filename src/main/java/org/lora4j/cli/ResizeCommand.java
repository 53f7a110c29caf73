package org.lora4j.cli;

import java.io.IOException;
import java.nio.file.Path;
import java.util.concurrent.Callable;
import org.lora4j.combine.FolderResize;
import picocli.CommandLine.ArgGroup;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Parameters;
import picocli.CommandLine.Spec;

/** {@code lora4j resize}. */
@Command(
        name = "resize",
        description = {
            "Changes the ranks of an adapter: at each layer the best approximation of its update, from the factors.",
            ""
        },
        mixinStandardHelpOptions = true,
        sortOptions = false)
final class ResizeCommand implements Callable<Integer> {
    @Spec
    private CommandSpec spec;

    @Parameters(paramLabel = "ADAPTER", description = "Folder of the adapter")
    private Path adapter;

    @ArgGroup(multiplicity = "1")
    private RankOptions rank;

    @Mixin
    private ReportOptions report = new ReportOptions();

    @Override
    public Integer call() throws IOException {
        report.report(
                FolderResize.resize(
                        adapter,
                        rank.rule(),
                        report.out(),
                        ReportOptions.listener(spec.commandLine().getErr(), "resize")),
                spec.commandLine().getOut());
        return 0;
    }
}
