package org.lora4j.train;

import java.util.Objects;

/**
 * One example to learn from: the completion is learned, the prompt only read.
 *
 * @param prompt what the model is given; may be empty
 * @param completion what it shall write
 */
public record Example(String prompt, String completion) {
    public Example {
        Objects.requireNonNull(prompt, "prompt");
        Objects.requireNonNull(completion, "completion");
    }
}
