package org.lora4j.merge;

import java.io.IOException;
import java.nio.ByteBuffer;
import org.lora4j.format.SafetensorsFile;
import org.lora4j.format.TensorFile;

/** The bytes of one tensor, in row-major order and little endian. */
@FunctionalInterface
interface Bytes {
    /** Fills the buffer, from a byte on that counts from the tensor's first. */
    void read(long from, ByteBuffer target) throws IOException;

    /** A tensor of a file; of a file that is not safetensors it is held in memory. */
    static Bytes of(TensorFile file, String name) throws IOException {
        if (file instanceof SafetensorsFile safetensors) {
            return (from, target) -> safetensors.read(name, from, target);
        }
        ByteBuffer all = file.read(name);
        return (from, target) ->
                target.put(all.duplicate().position((int) from).limit((int) from + target.remaining()));
    }
}
