package org.lora4j.cli;

import java.io.PrintStream;
import java.io.PrintWriter;
import java.nio.charset.StandardCharsets;
import java.nio.file.AccessDeniedException;
import java.nio.file.FileSystemException;
import java.nio.file.NoSuchFileException;
import org.lora4j.merge.AdapterMisfitException;
import picocli.AutoComplete;
import picocli.CommandLine;
import picocli.CommandLine.Command;

/** The command line: {@code lora4j VERB ...}. */
@Command(
        name = "lora4j",
        description = "LoRA adapters for language models and any LibTorch module, in Java.",
        mixinStandardHelpOptions = true,
        versionProvider = Main.Version.class,
        synopsisSubcommandLabel = "VERB",
        exitCodeListHeading = "%nExit codes:%n",
        exitCodeList = {
            "0:done",
            "1:failed; the message says why",
            "2:wrong usage",
            "3:adapters and checkpoint do not fit each other",
            "4:files are not those of their manifest"
        },
        footer = "%nCompletion in the shell: source <(lora4j generate-completion)",
        subcommands = {
            DemoCommand.class,
            EnvCommand.class,
            InspectCommand.class,
            PlanCommand.class,
            MergeCommand.class,
            VerifyCommand.class,
            UnmergeCommand.class,
            ConvertCommand.class,
            CombineCommand.class,
            ExtractCommand.class,
            ResizeCommand.class,
            TrainCommand.class,
            ServeCommand.class,
            AutoComplete.GenerateCompletion.class
        })
public final class Main {
    /** Adapters and checkpoint do not fit each other. */
    static final int MISFIT = 3;

    /** Files are not those of their manifest. */
    static final int DIFFERENT = 4;

    private Main() {}

    /**
     * Runs a verb and exits with its code: 0 done, 1 failed, 2 wrong usage, 3 adapters and checkpoint do not fit, 4 files
     * are not those of the manifest.
     */
    public static void main(String[] arguments) {
        System.exit(run(writer(System.out), writer(System.err), arguments));
    }

    static int run(PrintWriter out, PrintWriter err, String... arguments) {
        return new CommandLine(new Main())
                .setOut(out)
                .setErr(err)
                .setUsageHelpAutoWidth(true)
                .setCaseInsensitiveEnumValuesAllowed(true)
                .setExecutionExceptionHandler((problem, command, parsed) -> {
                    command.getErr().println("lora4j " + command.getCommandName() + ": " + message(problem));
                    if (System.getProperty("lora4j.trace") != null) {
                        problem.printStackTrace(command.getErr());
                    }
                    return problem instanceof AdapterMisfitException ? MISFIT : 1;
                })
                .execute(arguments);
    }

    private static PrintWriter writer(PrintStream stream) {
        return new PrintWriter(stream, true, StandardCharsets.UTF_8);
    }

    /** The messages of a failure and its causes, one sentence each. */
    private static String message(Throwable problem) {
        var text = new StringBuilder(describe(problem));
        for (Throwable cause = problem.getCause(); cause != null; cause = cause.getCause()) {
            text.append(System.lineSeparator()).append("  because: ").append(describe(cause));
        }
        return text.toString();
    }

    /** The version Maven put into the manifest, or that it is a build of the source tree. */
    static final class Version implements CommandLine.IVersionProvider {
        @Override
        public String[] getVersion() {
            String version = Main.class.getPackage().getImplementationVersion();
            return new String[] {"lora4j " + (version == null ? "(built from source)" : version)};
        }
    }

    private static String describe(Throwable problem) {
        String message = problem.getMessage();
        if (problem instanceof FileSystemException file && file.getReason() == null) {
            String what = problem instanceof NoSuchFileException
                    ? "there is no such file or folder; check the path"
                    : problem instanceof AccessDeniedException
                            ? "access is denied; check its permissions"
                            : problem.getClass().getSimpleName();
            return file.getFile() + ": " + what;
        }
        return message == null || problem instanceof NullPointerException ? problem.toString() : message;
    }
}
