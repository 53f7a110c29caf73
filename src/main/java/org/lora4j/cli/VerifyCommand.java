package org.lora4j.cli;

import java.io.IOException;
import java.io.PrintWriter;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.Callable;
import org.jspecify.annotations.Nullable;
import org.lora4j.merge.MergeManifest;
import org.lora4j.merge.Verification;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;
import picocli.CommandLine.Spec;

/** Compares a checkpoint with a manifest. */
@Command(
        name = "verify",
        description = {
            "Compares every header, tensor and file of a merged checkpoint with its manifest, by SHA-256.",
            "Exits with 4 and lists what differs."
        },
        mixinStandardHelpOptions = true)
final class VerifyCommand implements Callable<Integer> {
    @Spec
    private CommandSpec spec;

    @Parameters(index = "0", paramLabel = "CHECKPOINT", description = "Folder of the checkpoint.")
    private Path checkpoint;

    @Option(
            names = "--manifest",
            paramLabel = "FILE",
            description = "The manifest; otherwise merge-manifest.json in the folder.")
    private @Nullable Path manifest;

    @Option(
            names = "--inputs",
            description = "The checkpoint is the one that adapters were merged into: compare it with what it was then.")
    private boolean inputs;

    @Option(names = "--json", description = "Print the result as JSON.")
    private boolean json;

    @Override
    public Integer call() throws IOException {
        PrintWriter out = spec.commandLine().getOut();
        MergeManifest expected = MergeManifest.read(manifest == null ? checkpoint : manifest);
        Verification found;
        try (var bar = new ByteBar("verify", Terminal.attached() && !json)) {
            found = inputs
                    ? Verification.ofInputs(checkpoint, expected, bar)
                    : Verification.of(checkpoint, expected, bar);
        }
        if (json) {
            Map<String, Object> result = new LinkedHashMap<>();
            result.put("equal", found.isEqual());
            result.put("differences", found.differences());
            result.put("tensors", found.tensors());
            result.put("uncovered", found.uncovered());
            JsonOut.print(out, result);
        } else {
            found.differences().forEach(out::println);
            String uncovered =
                    found.uncovered() == 0 ? "" : ", " + found.uncovered() + " that the merge left alone have no hash";
            out.println((found.isEqual() ? "as the manifest says: " : "NOT as the manifest says: ") + found.tensors()
                    + " tensors compared" + uncovered);
            out.flush();
        }
        return found.isEqual() ? 0 : Main.DIFFERENT;
    }
}
