package org.lora4j.format;

import java.io.IOException;

/** A file is not what its format demands. The message names the file, the place, what is wrong and what to do. */
public class FormatException extends IOException {
    private static final long serialVersionUID = 1;

    public FormatException(String message) {
        super(message);
    }

    public FormatException(String message, Throwable cause) {
        super(message, cause);
    }
}
