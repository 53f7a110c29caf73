package org.lora4j.ops;

import java.io.IOException;
import java.io.InputStream;
import java.net.URI;
import java.net.URL;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import org.bytedeco.javacpp.Loader;
import org.jspecify.annotations.Nullable;
import org.lora4j.ops.binding.Lora4j;

/**
 * Loads the native library and explains why it does not load.
 *
 * <p>It lies beside the binding class, in a folder named after the platform. From a class folder it is loaded where it
 * is; from a jar, through a file of JavaCPP's cache folder that is gone once it is loaded, so that none is ever stale.
 */
final class NativeLibrary {
    private static final String CPU_PROPERTY = "lora4j.cpu";
    private static final String MERGE_PROPERTY = "lora4j.merge";

    private static boolean loaded;

    private NativeLibrary() {}

    /**
     * Loads the library once, with the instruction set of the {@code lora4j.cpu} property and the arithmetic of merges on
     * CUDA of {@code lora4j.merge} (exact or fast), if they are set.
     *
     * @throws IllegalStateException naming the file, the reason and the next step, if it does not load
     * @throws IllegalArgumentException if {@code lora4j.cpu} is not an instruction set of this CPU and build, or
     *     {@code lora4j.merge} neither exact nor fast
     */
    static synchronized void load() {
        if (!loaded) {
            LibTorch.load();
            loadFrom(resource(Loader.getPlatform()));
            loaded = true;
        }
        String isa = System.getProperty(CPU_PROPERTY);
        if (isa != null) {
            useInstructionSet(isa);
        }
        String merge = System.getProperty(MERGE_PROPERTY);
        if (merge != null && Lora4j.l4_set_merge(merge) != Lora4j.OK) {
            throw new IllegalArgumentException(MERGE_PROPERTY + "=" + merge + ": " + Lora4j.l4_last_error());
        }
    }

    /** Whether merges on CUDA run on tensor cores, in another order than the exact one. */
    static boolean mergesFast() {
        return "fast".equals(System.getProperty(MERGE_PROPERTY));
    }

    /** Forces an instruction set for the process; null goes back to the best one. */
    static void useInstructionSet(@Nullable String isa) {
        if (Lora4j.l4_set_cpu_isa(isa) != Lora4j.OK) {
            throw new IllegalArgumentException(CPU_PROPERTY + "=" + isa + ": " + Lora4j.l4_last_error());
        }
    }

    private static String resource(String platform) {
        return "/org/lora4j/ops/binding/" + platform + "/" + System.mapLibraryName("jnilora4j");
    }

    private static void loadFrom(String resource) {
        URL url = Lora4j.class.getResource(resource);
        if (url == null) {
            throw new IllegalStateException("The native library " + resource + " is not on the class path: this build"
                    + " has none for " + Loader.getPlatform()
                    + ". Build lora4j on this machine (it needs cmake and g++), or run with -Dlora4j.ops=torch.");
        }
        try {
            if (url.getProtocol().equals("file")) {
                Lora4j.load(Path.of(URI.create(url.toString())));
            } else {
                Path file = Files.createTempFile(Loader.getCacheDir().toPath(), "lora4j-", ".so");
                try (InputStream in = url.openStream()) {
                    Files.copy(in, file, StandardCopyOption.REPLACE_EXISTING);
                    Lora4j.load(file);
                } finally {
                    Files.delete(file);
                }
            }
        } catch (IOException | LinkageError e) {
            String reason = String.valueOf(e.getMessage());
            String next = reason.contains("GLIBC")
                    ? "It was built for a newer C library than this system has: build lora4j on this machine"
                    : "Build lora4j on this machine";
            throw new IllegalStateException(
                    "The native library " + url + " does not load: " + reason + ". " + next
                            + ", or run with -Dlora4j.ops=torch.",
                    e);
        }
    }
}
