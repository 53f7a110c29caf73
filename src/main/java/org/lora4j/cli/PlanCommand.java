package org.lora4j.cli;

import java.io.IOException;
import java.io.PrintWriter;
import java.util.Locale;
import java.util.concurrent.Callable;
import org.lora4j.merge.CheckpointMerge;
import org.lora4j.merge.MergePlan;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** What a merge would do. */
@Command(
        name = "plan",
        description = {
            "Shows what a merge would do and writes nothing: for every tensor of the adapters the tensor it changes,",
            "rank, scale, how large the change is, and how much of it the result's type keeps.",
            "Exits with 3 and lists every reason if adapters and checkpoint do not fit."
        },
        mixinStandardHelpOptions = true)
final class PlanCommand implements Callable<Integer> {
    @Spec
    private CommandSpec spec;

    @Mixin
    private MergeArguments arguments;

    @Option(names = "--json", description = "Print the plan as JSON.")
    private boolean json;

    @Override
    public Integer call() throws IOException {
        PrintWriter out = spec.commandLine().getOut();
        arguments.check(spec);
        try (var folders = new AdapterArgument.Folders(arguments.adapters, arguments.checkpoint)) {
            MergePlan plan = CheckpointMerge.plan(arguments.options(folders.adapters(), null));
            if (json) {
                JsonOut.print(out, plan.json());
            } else {
                print(out, plan);
            }
        }
        return 0;
    }

    private static void print(PrintWriter out, MergePlan plan) {
        out.printf("%-58s %-12s %9s %9s  %s%n", "tensor", "type", "ratio", "signal", "change");
        for (MergePlan.Change change : plan.changes()) {
            String from = change.from();
            String type = from == null || from.equals(change.to()) ? change.to() : from + " -> " + change.to();
            out.printf(
                    Locale.ROOT,
                    "%-58s %-12s %9s %9s  %s%n",
                    change.tensor(),
                    type,
                    number("%.2e", change.ratio()),
                    number("%.1f dB", change.signal()),
                    String.join("; ", change.actions()));
        }
        out.println();
        plan.notes().forEach(note -> out.println("note: " + note));
        plan.leftBehind().forEach(file -> out.println("left behind: " + file));
        out.printf(
                Locale.ROOT,
                "%d tensors change; %.3f GB read, %.3f GB written in %d files, %d others carried over; about %.0f s%n",
                plan.changes().size(),
                plan.bytesRead() / 1e9,
                plan.bytesWritten() / 1e9,
                plan.files().size(),
                plan.carried().size(),
                Math.ceil(plan.seconds()));
        out.println("ratio: |change| / |weight|. signal: |change| over the rounding of the result's type.");
        out.flush();
    }

    private static String number(String format, double value) {
        return Double.isFinite(value) ? String.format(Locale.ROOT, format, value) : "-";
    }
}
