package org.lora4j.merge;

import java.util.List;
import org.lora4j.format.FormatException;

/** An adapter and a checkpoint do not fit each other. The message lists every reason. */
public final class AdapterMisfitException extends FormatException {
    private static final long serialVersionUID = 1;

    private final transient List<String> problems;

    AdapterMisfitException(String checkpoint, List<String> problems) {
        super(checkpoint + " and the adapters do not fit each other; nothing was written. " + problems.size()
                + (problems.size() == 1 ? " problem:" : " problems:") + "\n  " + String.join("\n  ", problems));
        this.problems = List.copyOf(problems);
    }

    /** Every reason, a sentence each. */
    public List<String> problems() {
        return problems;
    }
}
