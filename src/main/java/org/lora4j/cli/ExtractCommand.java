package org.lora4j.cli;

import java.io.IOException;
import java.nio.file.Path;
import java.util.concurrent.Callable;
import org.jspecify.annotations.Nullable;
import org.lora4j.combine.ExtractOptions;
import org.lora4j.combine.Extraction;
import org.lora4j.format.DType;
import picocli.CommandLine.ArgGroup;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;
import picocli.CommandLine.Spec;

/** {@code lora4j extract}. */
@Command(
        name = "extract",
        description = {
            "Makes an adapter of what fine-tuning changed in a model.",
            "",
            "At each layer the leading singular components of the change are kept; the table shows the error of each"
                    + " layer, which is measured. A run that was stopped goes on when started again.",
            ""
        },
        mixinStandardHelpOptions = true,
        sortOptions = false)
final class ExtractCommand implements Callable<Integer> {
    @Spec
    private CommandSpec spec;

    @Parameters(index = "0", paramLabel = "BASE", description = "Folder of the checkpoint before")
    private Path base;

    @Parameters(index = "1", paramLabel = "TUNED", description = "Folder of the checkpoint after")
    private Path tuned;

    @ArgGroup(multiplicity = "1")
    private RankOptions rank;

    @Option(
            names = "--targets",
            paramLabel = "REGEX",
            description = "Layers that get factors, by their path or the end of it. Default: all linear ones")
    private @Nullable String targets;

    @Option(
            names = "--others",
            paramLabel = "HOW",
            defaultValue = "save",
            description =
                    "What else changed: save it whole (modules_to_save, lora_bias) or error. Default: ${DEFAULT-VALUE}")
    private ExtractOptions.Others others;

    @Option(
            names = "--dtype",
            paramLabel = "TYPE",
            defaultValue = "F32",
            description = "Type of the factors: F32, BF16 or F16. Default: ${DEFAULT-VALUE}")
    private DType dtype;

    @Option(names = "--seed", paramLabel = "S", defaultValue = "0", description = "Seed of the random start")
    private long seed;

    @Mixin
    private ReportOptions report = new ReportOptions();

    @Override
    public Integer call() throws IOException {
        ExtractOptions options = new ExtractOptions(rank.rule(), targets, others, dtype, seed);
        report.report(
                Extraction.extract(
                        base,
                        tuned,
                        options,
                        report.out(),
                        ReportOptions.listener(spec.commandLine().getErr(), "extract")),
                spec.commandLine().getOut());
        return 0;
    }
}
