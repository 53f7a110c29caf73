package org.lora4j.layer;

/**
 * A module with the matrices of its experts stacked in parameters of three dimensions, which says how each matrix lies.
 * Without this interface a stack is taken to be (experts, out, in), as for {@code torch.nn.Linear}. What PEFT reads from the
 * attribute {@code is_transposed}, such as that of GPT-OSS's experts.
 */
public interface StackedExperts {
    /** Whether the stacks are (experts, in, out). */
    boolean isTransposed();
}
