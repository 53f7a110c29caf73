package org.lora4j.format;

import java.nio.ByteBuffer;
import java.nio.channels.WritableByteChannel;

/** Writes into a buffer. */
record ByteBufferChannel(ByteBuffer target) implements WritableByteChannel {
    @Override
    public int write(ByteBuffer bytes) {
        int count = bytes.remaining();
        target.put(bytes);
        return count;
    }

    @Override
    public boolean isOpen() {
        return true;
    }

    @Override
    public void close() {
        // A buffer has nothing to release.
    }
}
