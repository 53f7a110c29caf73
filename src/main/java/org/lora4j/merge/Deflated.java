package org.lora4j.merge;

import java.io.ByteArrayOutputStream;
import java.util.zip.DataFormatException;
import java.util.zip.Deflater;
import java.util.zip.Inflater;

/** Bytes made smaller by zlib, as fast as it can. */
final class Deflated {
    private Deflated() {}

    static byte[] deflate(byte[] bytes) {
        Deflater deflater = new Deflater(Deflater.BEST_SPEED);
        try {
            deflater.setInput(bytes);
            deflater.finish();
            ByteArrayOutputStream out = new ByteArrayOutputStream(1024);
            byte[] chunk = new byte[1 << 16];
            while (!deflater.finished()) {
                out.write(chunk, 0, deflater.deflate(chunk));
            }
            return out.toByteArray();
        } finally {
            deflater.end();
        }
    }

    /**
     * The bytes again.
     *
     * @param length how many there are
     * @throws IllegalArgumentException if they are not what {@link #deflate} gave for so many bytes
     */
    static byte[] inflate(byte[] deflated, int length) {
        byte[] bytes = new byte[length];
        Inflater inflater = new Inflater();
        try {
            inflater.setInput(deflated);
            int at = 0;
            while (at < length) {
                int read = inflater.inflate(bytes, at, length - at);
                if (read == 0) {
                    throw new IllegalArgumentException("the residual ends early");
                }
                at += read;
            }
            if (inflater.inflate(new byte[1]) != 0 || !inflater.finished()) {
                throw new IllegalArgumentException("the residual is longer than its matrix");
            }
            return bytes;
        } catch (DataFormatException e) {
            throw new IllegalArgumentException("the residual is damaged: " + e.getMessage(), e);
        } finally {
            inflater.end();
        }
    }
}
