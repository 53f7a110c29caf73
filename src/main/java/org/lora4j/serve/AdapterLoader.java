package org.lora4j.serve;

import java.io.IOException;
import java.nio.file.Path;
import org.lora4j.model.AdapterImage;

/** Reads adapters from their folders; {@code HostModel::read} is one. Called on several threads at once. */
@FunctionalInterface
public interface AdapterLoader {
    /**
     * Reads and checks an adapter.
     *
     * @throws IllegalArgumentException if it does not fit the model
     * @throws IOException if a file cannot be read or is defective
     */
    AdapterImage read(Path folder) throws IOException;
}
