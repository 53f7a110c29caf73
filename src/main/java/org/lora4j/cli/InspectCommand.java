package org.lora4j.cli;

import java.io.IOException;
import java.io.PrintWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.Callable;
import org.lora4j.config.LoraConfig;
import org.lora4j.format.AdapterConfigJson;
import org.lora4j.format.AdapterFolder;
import org.lora4j.format.AdapterLayout;
import org.lora4j.format.ShardedCheckpoint;
import org.lora4j.format.TensorFile;
import org.lora4j.format.TensorInfo;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;
import picocli.CommandLine.Spec;

/** What a checkpoint or an adapter holds. */
@Command(
        name = "inspect",
        description = "Shows what a checkpoint or an adapter holds, after checking its files: types, sizes, tensors.",
        mixinStandardHelpOptions = true)
final class InspectCommand implements Callable<Integer> {
    @Spec
    private CommandSpec spec;

    @Parameters(index = "0", paramLabel = "PATH", description = "A folder, or a file of tensors.")
    private Path path;

    @Option(names = "--tensors", description = "List every tensor.")
    private boolean each;

    @Option(names = "--json", description = "Print it as JSON, with every tensor.")
    private boolean json;

    @Override
    public Integer call() throws IOException {
        Map<String, Object> found = new LinkedHashMap<>();
        List<TensorInfo> tensors = new ArrayList<>();
        if (Files.exists(path.resolve(AdapterConfigJson.FILE_NAME))) {
            LoraConfig config = AdapterConfigJson.read(path.resolve(AdapterConfigJson.FILE_NAME));
            found.put("kind", "adapter in PEFT's layout");
            found.put("configuration", config.toString());
            found.put("warnings", config.warnings());
            try (TensorFile file = TensorFile.open(AdapterFolder.tensors(path))) {
                tensors.addAll(file.tensors().values());
                found.put("metadata", file.metadata());
            }
        } else if (Files.isDirectory(path) || path.toString().endsWith(".json")) {
            found.put("kind", "checkpoint");
            try (ShardedCheckpoint checkpoint = ShardedCheckpoint.open(path)) {
                Map<String, Long> files = new LinkedHashMap<>();
                for (var file : checkpoint.files()) {
                    files.put(file.path().getFileName().toString(), Files.size(file.path()));
                }
                found.put("files", files);
                checkpoint.tensors().values().forEach(location -> tensors.add(location.info()));
            }
        } else {
            try (TensorFile file = TensorFile.open(path)) {
                AdapterLayout layout = AdapterLayout.of(file.tensors().keySet());
                found.put("kind", layout == AdapterLayout.UNKNOWN ? "tensors" : "adapter in " + layout + " layout");
                tensors.addAll(file.tensors().values());
                found.put("metadata", file.metadata());
            }
        }
        summarize(found, tensors);
        print(found, tensors);
        return 0;
    }

    private static void summarize(Map<String, Object> found, List<TensorInfo> tensors) {
        Map<String, Object> types = new TreeMap<>();
        for (TensorInfo tensor : tensors) {
            types.merge(tensor.dtype().name(), tensor.bytes(), (a, b) -> (Long) a + (Long) b);
        }
        found.put("tensors", tensors.size());
        found.put(
                "numbers",
                tensors.stream()
                        .mapToLong(t -> t.bytes() * 8 / t.dtype().bits())
                        .sum());
        found.put("bytes", tensors.stream().mapToLong(TensorInfo::bytes).sum());
        found.put("bytes_by_type", types);
    }

    private void print(Map<String, Object> found, List<TensorInfo> tensors) {
        PrintWriter out = spec.commandLine().getOut();
        if (json) {
            Map<String, Object> list = new LinkedHashMap<>();
            tensors.forEach(tensor -> list.put(
                    tensor.name(),
                    Map.of(
                            "dtype",
                            tensor.dtype().name(),
                            "shape",
                            Arrays.stream(tensor.shape()).boxed().toList(),
                            "bytes",
                            tensor.bytes())));
            found.put("list", list);
            JsonOut.print(out, found);
            return;
        }
        found.forEach((key, value) -> out.printf(Locale.ROOT, "%-15s%s%n", key.replace('_', ' '), value));
        if (each) {
            tensors.forEach(tensor -> out.println("  " + tensor));
        }
        out.flush();
    }
}
