package org.lora4j.serve;

import java.nio.file.Path;
import org.jspecify.annotations.Nullable;

/** Finds adapters that nobody registered. Called on the thread of a request: it must be quick. */
@FunctionalInterface
public interface AdapterResolver {
    /** The folder of an adapter of this name, or null if there is none. */
    @Nullable
    Path find(String name);
}
