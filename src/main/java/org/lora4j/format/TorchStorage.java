package org.lora4j.format;

import org.jspecify.annotations.Nullable;

/**
 * A block of memory in a file of PyTorch, which tensors view.
 *
 * @param key its name in the file
 * @param dtype its element type, or null if it is of bytes that its tensors give a type
 * @param elements the number of its elements
 * @param bytes the number of its bytes
 */
record TorchStorage(String key, @Nullable DType dtype, long elements, long bytes) {}
