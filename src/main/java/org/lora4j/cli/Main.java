package org.lora4j.cli;

import java.io.PrintStream;
import java.io.PrintWriter;
import java.nio.charset.StandardCharsets;
import picocli.CommandLine;
import picocli.CommandLine.Command;

/** The command line: {@code lora4j VERB ...}. */
@Command(
        name = "lora4j",
        description = "LoRA adapters for language models and any LibTorch module, in Java.",
        mixinStandardHelpOptions = true,
        versionProvider = Main.Version.class,
        synopsisSubcommandLabel = "VERB",
        subcommands = {DemoCommand.class, TrainCommand.class, EnvCommand.class})
public final class Main {
    private Main() {}

    /** Runs a verb and exits with its code: 0 done, 1 failed, 2 wrong usage. */
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
                    return 1;
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
        return message == null || problem instanceof NullPointerException ? problem.toString() : message;
    }
}
