package org.lora4j.ops;

/**
 * The operations in use, chosen once per process.
 *
 * <p>The system property {@code lora4j.ops} forces {@code torch}; without it, the best implementation that works here
 * is chosen.
 */
public final class Ops {
    private static final String PROPERTY = "lora4j.ops";

    private Ops() {}

    /** The operations every layer uses. */
    public static LoraOps current() {
        return Current.OPS;
    }

    /**
     * One implementation by name, whatever {@link #current()} is.
     *
     * @param name {@code torch}
     */
    public static LoraOps named(String name) {
        return switch (name) {
            case "torch" -> new TorchOps();
            default ->
                throw new IllegalArgumentException(
                        PROPERTY + " is \"" + name + "\" but must be torch: correct the property");
        };
    }

    /** One line for a log: what {@link #current()} is. */
    public static String describe() {
        return current().description();
    }

    private static final class Current {
        static final LoraOps OPS = named(System.getProperty(PROPERTY, "torch"));
    }
}
