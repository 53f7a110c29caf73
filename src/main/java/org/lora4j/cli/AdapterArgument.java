package org.lora4j.cli;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Set;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.AdapterConverter;
import org.lora4j.format.GgufAdapter;
import org.lora4j.format.GgufFile;
import org.lora4j.format.ShardedCheckpoint;
import org.lora4j.merge.WeightedAdapter;
import picocli.CommandLine.ITypeConverter;
import picocli.CommandLine.TypeConversionException;

/**
 * An adapter as it is named on the command line: {@code PATH} or {@code PATH=WEIGHT}.
 *
 * @param path a folder in PEFT's layout, or a file of kohya's, of diffusers' or GGUF
 */
record AdapterArgument(Path path, double weight) {
    static final class Converter implements ITypeConverter<AdapterArgument> {
        @Override
        public AdapterArgument convert(String text) {
            int at = text.lastIndexOf('=');
            if (at < 0 || Files.exists(Path.of(text))) {
                return new AdapterArgument(Path.of(text), 1);
            }
            try {
                double weight = Double.parseDouble(text.substring(at + 1));
                return new AdapterArgument(Path.of(text.substring(0, at)), weight);
            } catch (NumberFormatException e) {
                throw new TypeConversionException("'" + text + "' has no number after '=': write PATH=WEIGHT");
            }
        }
    }

    /** Adapters as folders in PEFT's layout; those of other layouts are converted into a temporary folder. */
    static final class Folders implements AutoCloseable {
        private final List<Path> temporary = new ArrayList<>();
        private final List<WeightedAdapter> adapters = new ArrayList<>();

        Folders(List<AdapterArgument> arguments, Path checkpoint) throws IOException {
            try {
                for (AdapterArgument argument : arguments) {
                    Path folder = argument.path();
                    if (Files.isRegularFile(folder)) {
                        folder = Files.createTempDirectory("lora4j-adapter");
                        temporary.add(folder);
                        toPeft(argument.path(), null, checkpoint, folder);
                    }
                    adapters.add(new WeightedAdapter(folder, argument.weight()));
                }
            } catch (Throwable failure) {
                close();
                throw failure;
            }
        }

        WeightedAdapter[] adapters() {
            return adapters.toArray(new WeightedAdapter[0]);
        }

        @Override
        public void close() throws IOException {
            for (Path folder : temporary) {
                List<Path> deepestFirst;
                try (Stream<Path> all = Files.walk(folder)) {
                    deepestFirst = all.sorted(Comparator.reverseOrder()).toList();
                }
                for (Path path : deepestFirst) {
                    Files.delete(path);
                }
            }
            temporary.clear();
        }
    }

    /** Turns a file of another layout into a folder of PEFT's. */
    static void toPeft(Path file, @Nullable String part, Path checkpoint, Path folder) throws IOException {
        if (GgufFile.recognises(file)) {
            Path home = Files.isDirectory(checkpoint)
                    ? checkpoint
                    : checkpoint.toAbsolutePath().getParent();
            GgufAdapter.toPeft(file, home == null ? checkpoint : home, modules(checkpoint), folder);
        } else {
            AdapterConverter.toPeft(file, part, modules(checkpoint), folder);
        }
    }

    /** The paths of the modules that a checkpoint has tensors of. */
    static Set<String> modules(Path checkpoint) throws IOException {
        Set<String> modules = new LinkedHashSet<>();
        try (ShardedCheckpoint tensors = ShardedCheckpoint.open(checkpoint)) {
            for (String name : tensors.tensors().keySet()) {
                for (int dot = name.lastIndexOf('.'); dot > 0; dot = name.lastIndexOf('.', dot - 1)) {
                    modules.add(name.substring(0, dot));
                }
            }
        }
        return modules;
    }
}
