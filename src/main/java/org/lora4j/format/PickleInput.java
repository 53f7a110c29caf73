package org.lora4j.format;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;

/** The bytes of a pickle; every read is checked against their end. */
final class PickleInput {
    /** Larger pickles are refused; the names and shapes of a hundred thousand tensors fit. */
    static final int MAX_BYTES = 16 << 20;

    private static final int MAX_LINE = 256;

    private final ByteBuffer bytes;
    private final String file;

    PickleInput(byte[] bytes, String file) {
        this.bytes = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN);
        this.file = file;
    }

    int position() {
        return bytes.position();
    }

    int unsignedByte() throws FormatException {
        need(1);
        return bytes.get() & 0xff;
    }

    int unsignedShort() throws FormatException {
        need(2);
        return bytes.getShort() & 0xffff;
    }

    int signedInt() throws FormatException {
        need(4);
        return bytes.getInt();
    }

    /** An index or a length; those of 2^31 and more are beyond any pickle that is read. */
    int length() throws FormatException {
        int length = signedInt();
        if (length < 0) {
            throw wrong("a length of " + Integer.toUnsignedString(length) + " is beyond its end");
        }
        return length;
    }

    double bigEndianDouble() throws FormatException {
        need(8);
        return Double.longBitsToDouble(Long.reverseBytes(bytes.getLong()));
    }

    /** A whole number of up to eight bytes, least significant first. */
    long signedLong(int count) throws FormatException {
        if (count > 8) {
            throw wrong("a number of " + count + " bytes is no size of a tensor");
        }
        need(count);
        long value = 0;
        for (int i = 0; i < count; i++) {
            value |= (bytes.get() & 0xffL) << (8 * i);
        }
        int unused = 64 - 8 * count;
        return count == 0 ? 0 : value << unused >> unused;
    }

    String utf8(int length) throws FormatException {
        need(length);
        byte[] text = new byte[length];
        bytes.get(text);
        if (Utf8.firstInvalid(text, length) >= 0) {
            throw wrong("a string is not UTF-8");
        }
        return new String(text, StandardCharsets.UTF_8);
    }

    /** The characters up to the next newline, which is taken as well. */
    String line() throws FormatException {
        StringBuilder line = new StringBuilder();
        for (int c = unsignedByte(); c != '\n'; c = unsignedByte()) {
            if (line.length() == MAX_LINE || c < ' ' || c > '~') {
                throw wrong("the name of a global is longer than " + MAX_LINE + " characters or not ASCII");
            }
            line.append((char) c);
        }
        return line.toString();
    }

    private void need(int count) throws FormatException {
        if (count > bytes.remaining()) {
            throw wrong(
                    "it ends there, " + (count - bytes.remaining()) + " bytes early, or is longer than " + MAX_BYTES);
        }
    }

    FormatException wrong(String what) {
        return new FormatException(file + ": its pickle is not one of a state dict, at byte " + bytes.position() + ": "
                + what + "; copy the file again, or convert it to safetensors");
    }
}
