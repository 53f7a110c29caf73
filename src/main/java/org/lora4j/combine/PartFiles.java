package org.lora4j.combine;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Comparator;
import java.util.HashMap;
import java.util.Map;
import java.util.stream.Stream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.lora4j.format.DType;
import org.lora4j.format.SafetensorsWriter;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;

/** Finished layers in a folder of their own until the whole adapter is written, so that they need no memory. */
final class PartFiles {
    private final Path folder;
    private final SafetensorsWriter writer = new SafetensorsWriter(TensorFiles.METADATA);

    /** Makes a tensor of the adapter from those of a part. */
    interface Make {
        Tensor from(MappedTensors part);
    }

    /** @param folder created if it is not there */
    PartFiles(Path folder) throws IOException {
        this.folder = Files.createDirectories(folder);
    }

    private Path file(int part) {
        return folder.resolve(String.format("%06d.safetensors", part));
    }

    boolean has(int part) {
        return Files.exists(file(part));
    }

    void write(int part, Map<String, Tensor> tensors) throws IOException {
        TensorFiles.write(file(part), tensors, TensorFiles.METADATA);
    }

    MappedTensors open(int part) throws IOException {
        return TensorFiles.open(file(part));
    }

    /** Adds a tensor of the adapter, made while it is written. */
    void add(String key, DType type, long[] shape, int part, Make make) {
        writer.add(key, type, shape, out -> {
            try (PointerScope scope = new PointerScope();
                    MappedTensors tensors = open(part)) {
                TensorFiles.source(make.from(tensors)).writeTo(out);
            }
        });
    }

    /** Adds all tensors of a part under other names, as they are. */
    void addAll(int part, Map<String, String> keys) throws IOException {
        Map<String, String> own = new HashMap<>(keys);
        try (MappedTensors tensors = open(part)) {
            for (String name : tensors.names()) {
                String key = own.getOrDefault(name, name);
                add(key, tensors.info(name).dtype(), tensors.info(name).shape(), part, all -> all.tensor(name));
            }
        }
    }

    /** Writes the adapter's file in a single step. */
    void assemble(Path file) throws IOException {
        writer.write(file);
    }

    void delete() throws IOException {
        try (Stream<Path> files = Files.walk(folder)) {
            for (Path each : files.sorted(Comparator.reverseOrder()).toList()) {
                Files.delete(each);
            }
        }
    }
}
