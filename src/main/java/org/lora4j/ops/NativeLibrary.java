package org.lora4j.ops;

import org.bytedeco.javacpp.Loader;
import org.jspecify.annotations.Nullable;
import org.lora4j.ops.binding.Lora4j;

/** Loads the native library and explains why it does not load. */
final class NativeLibrary {
    private static final String CPU_PROPERTY = "lora4j.cpu";

    private static boolean loaded;

    private NativeLibrary() {}

    /**
     * Loads the library once, with the instruction set of the {@code lora4j.cpu} property if that is set.
     *
     * @throws IllegalStateException naming the file, the reason and the next step, if it does not load
     * @throws IllegalArgumentException if {@code lora4j.cpu} is not an instruction set of this CPU and build
     */
    static synchronized void load() {
        if (loaded) {
            return;
        }
        LibTorch.load();
        try {
            Lora4j.load();
        } catch (LinkageError | RuntimeException e) {
            throw new IllegalStateException(explain(Loader.getPlatform(), isPresent(), e), e);
        }
        String isa = System.getProperty(CPU_PROPERTY);
        if (isa != null) {
            useInstructionSet(isa);
        }
        loaded = true;
    }

    /** Forces an instruction set for the process; null goes back to the best one. */
    static void useInstructionSet(@Nullable String isa) {
        if (Lora4j.l4_set_cpu_isa(isa) != Lora4j.OK) {
            throw new IllegalArgumentException(CPU_PROPERTY + "=" + isa + ": " + Lora4j.l4_last_error());
        }
    }

    static String resource(String platform) {
        return "/org/lora4j/ops/binding/" + platform + "/" + System.mapLibraryName("jnilora4j");
    }

    private static boolean isPresent() {
        return Lora4j.class.getResource(resource(Loader.getPlatform())) != null;
    }

    static String explain(String platform, boolean present, Throwable failure) {
        String file = resource(platform);
        if (!present) {
            return "The native library " + file + " is not on the class path, so this build has none for " + platform
                    + ". Build lora4j on this machine (it needs cmake and g++), or run with -Dlora4j.ops=torch.";
        }
        Throwable root = failure;
        while (root.getCause() != null) {
            root = root.getCause();
        }
        String reason = String.valueOf(root.getMessage());
        String next = reason.contains("GLIBC")
                ? "It was built for a newer C library than this system has: build lora4j on this machine"
                : "Check the library it names with ldd, or build lora4j on this machine";
        return "The native library " + file + " does not load: " + reason + ". " + next
                + ", or run with -Dlora4j.ops=torch.";
    }
}
