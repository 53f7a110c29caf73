package org.lora4j.format;

import java.io.IOException;
import java.nio.channels.WritableByteChannel;

/** Supplies the bytes of one tensor, in row-major order and little endian, when a writer asks for them. */
@FunctionalInterface
public interface TensorSource {
    /** Writes every byte of the tensor, in as many pieces as it likes. */
    void writeTo(WritableByteChannel out) throws IOException;
}
