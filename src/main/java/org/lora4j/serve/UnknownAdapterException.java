package org.lora4j.serve;

/** A name that no adapter has. */
public final class UnknownAdapterException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    private final String name;

    UnknownAdapterException(String name, int known) {
        super("there is no adapter \"" + name + "\" among the " + known
                + " that are registered: load it first, or check the name");
        this.name = name;
    }

    /** The name. */
    public String name() {
        return name;
    }
}
