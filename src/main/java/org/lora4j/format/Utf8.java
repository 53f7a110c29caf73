package org.lora4j.format;

import java.io.ByteArrayInputStream;
import java.io.InputStreamReader;
import java.io.Reader;
import java.nio.ByteBuffer;
import java.nio.CharBuffer;
import java.nio.charset.CharsetDecoder;
import java.nio.charset.CoderResult;
import java.nio.charset.StandardCharsets;

/** Checks that bytes are UTF-8, which a JSON parser alone takes less strictly. */
final class Utf8 {
    private Utf8() {}

    /** The characters of bytes that were checked. */
    static Reader reader(byte[] bytes) {
        return new InputStreamReader(new ByteArrayInputStream(bytes), StandardCharsets.UTF_8);
    }

    /** The position of the first byte among {@code length} that is not UTF-8, or -1. */
    static int firstInvalid(byte[] bytes, int length) {
        CharsetDecoder decoder = StandardCharsets.UTF_8.newDecoder();
        ByteBuffer in = ByteBuffer.wrap(bytes, 0, length);
        CharBuffer discarded = CharBuffer.allocate(8192);
        while (true) {
            CoderResult result = decoder.decode(in, discarded.clear(), true);
            if (result.isError()) {
                return in.position();
            }
            if (result.isUnderflow()) {
                return -1;
            }
        }
    }
}
