package org.lora4j.ops;

import org.bytedeco.javacpp.Loader;

/**
 * Loads LibTorch once, with the settings large models need.
 *
 * <p>JavaCPP counts mapped weights as its own memory and, past four times the Java heap, throws
 * {@code OutOfMemoryError}. {@link #load()} therefore switches that check off, which works only before the first
 * JavaCPP class is initialised: programs that touch JavaCPP before lora4j pass
 * {@code -Dorg.bytedeco.javacpp.maxPhysicalBytes=0} themselves.
 */
public final class LibTorch {
    static {
        setIfAbsent("org.bytedeco.javacpp.maxPhysicalBytes", "0");
        setIfAbsent("org.bytedeco.javacpp.maxBytes", "0");
        Loader.load(org.bytedeco.pytorch.global.torch.class);
    }

    private LibTorch() {}

    /** Loads LibTorch if it is not loaded yet. */
    public static void load() {
        // The static initialiser does the work, once.
    }

    private static void setIfAbsent(String property, String value) {
        if (System.getProperty(property) == null) {
            System.setProperty(property, value);
        }
    }
}
