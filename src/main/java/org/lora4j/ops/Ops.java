package org.lora4j.ops;

import org.jspecify.annotations.Nullable;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The operations in use, chosen once per process.
 *
 * <p>The native ones if their library loads, with LibTorch where it has no kernels; else LibTorch's, with the reason
 * logged as a warning. The system property {@code lora4j.ops}, {@code native} or {@code torch}, forces one: it is used
 * everywhere or fails, and nothing replaces it. {@code lora4j.cpu}, {@code plain}, {@code avx2} or {@code avx512},
 * forces the native operations' instruction set.
 */
public final class Ops {
    private static final String PROPERTY = "lora4j.ops";
    private static final Logger LOG = LoggerFactory.getLogger(Ops.class);

    private static volatile @Nullable LoraOps current;

    private Ops() {}

    /**
     * The operations every layer uses.
     *
     * @throws IllegalStateException if {@code native} is forced and the library does not load
     * @throws IllegalArgumentException if a property has a value that does not exist here
     */
    public static LoraOps current() {
        LoraOps ops = current;
        if (ops == null) {
            synchronized (Ops.class) {
                ops = current;
                if (ops == null) {
                    String forced = System.getProperty(PROPERTY);
                    ops = forced == null ? best() : named(forced);
                    LOG.debug("Operations: {}", ops.description());
                    current = ops;
                }
            }
        }
        return ops;
    }

    /**
     * One implementation by name, whatever {@link #current()} is, without any fallback.
     *
     * @param name {@code native} or {@code torch}
     * @throws IllegalStateException if the native library does not load
     */
    public static LoraOps named(String name) {
        return switch (name) {
            case "torch" -> new TorchOps();
            case "native" -> new NativeOps(null);
            default ->
                throw new IllegalArgumentException(
                        PROPERTY + " is \"" + name + "\" but must be native or torch: correct the property");
        };
    }

    /** One line for a log: what {@link #current()} is. */
    public static String describe() {
        return current().description();
    }

    private static LoraOps best() {
        LoraOps torch = new TorchOps();
        try {
            return new NativeOps(torch);
        } catch (IllegalStateException e) {
            LOG.warn("Using LibTorch operations: {}", e.getMessage());
            return torch;
        }
    }
}
