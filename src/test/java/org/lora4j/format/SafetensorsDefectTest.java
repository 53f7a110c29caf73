package org.lora4j.format;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.lora4j.format.SafetensorsException.Defect;

/** One attack for each defect of a single file, in the order of the enum. */
class SafetensorsDefectTest {
    @TempDir
    Path folder;

    /** A file of a header, its true length, and data bytes. */
    private static byte[] file(byte[] header, int dataBytes) {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        out.writeBytes(length(header.length));
        out.writeBytes(header);
        out.writeBytes(new byte[dataBytes]);
        return out.toByteArray();
    }

    private static byte[] file(String header, int dataBytes) {
        return file(header.getBytes(StandardCharsets.UTF_8), dataBytes);
    }

    private static byte[] length(long value) {
        return ByteBuffer.allocate(8)
                .order(ByteOrder.LITTLE_ENDIAN)
                .putLong(value)
                .array();
    }

    private static String entry(String name, String dtype, String shape, String offsets) {
        return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets
                + "}";
    }

    private static String one(String dtype, String shape, String offsets) {
        return "{" + entry("w", dtype, shape, offsets) + "}";
    }

    private void assertDefect(byte[] bytes, Defect defect, String... parts) throws IOException {
        Path path = folder.resolve("attack.safetensors");
        Files.write(path, bytes);
        assertThatThrownBy(() -> SafetensorsFile.open(path))
                .isInstanceOfSatisfying(
                        SafetensorsException.class,
                        e -> assertThat(e.defect()).as(e.getMessage()).isEqualTo(defect))
                .hasMessageStartingWith(path + ": ")
                .satisfies(e -> assertThat(List.of(parts))
                        .allSatisfy(part -> assertThat(e).hasMessageContaining(part)));
    }

    @Test
    void theCraftedFileWithoutADefectIsRead() throws IOException {
        Path path = folder.resolve("good.safetensors");
        Files.write(
                path,
                file(
                        "{" + entry("a", "F32", "[2,3]", "[0,24]") + "," + entry("b", "I64", "[]", "[24,32]") + "}   ",
                        32));
        try (SafetensorsFile file = SafetensorsFile.open(path)) {
            assertThat(file.tensors()).containsOnlyKeys("a", "b");
        }
    }

    @Test
    void fileTooShort() throws IOException {
        assertDefect(new byte[0], Defect.FILE_TOO_SHORT, "0 bytes");
        assertDefect(new byte[7], Defect.FILE_TOO_SHORT, "7 bytes");
    }

    @Test
    void headerTooLarge() throws IOException {
        assertDefect(length(100_000_001), Defect.HEADER_TOO_LARGE, "100000001");
        assertDefect(length(Long.MAX_VALUE), Defect.HEADER_TOO_LARGE);
        assertDefect(length(-1), Defect.HEADER_TOO_LARGE, "18446744073709551615");
    }

    @Test
    void headerTruncated() throws IOException {
        assertDefect(length(100_000_000), Defect.HEADER_TRUNCATED, "only 0 follow");
        byte[] whole = file("{}", 0);
        assertDefect(java.util.Arrays.copyOf(whole, 9), Defect.HEADER_TRUNCATED, "claims 2 bytes");
    }

    @Test
    void headerStart() throws IOException {
        assertDefect(file("", 0), Defect.HEADER_START);
        assertDefect(file(" {}", 0), Defect.HEADER_START);
        assertDefect(file("[]", 0), Defect.HEADER_START);
        assertDefect(file("\ufeff{}", 0), Defect.HEADER_START);
    }

    @Test
    void headerNotUtf8() throws IOException {
        assertDefect(file(new byte[] {'{', '"', (byte) 0xff, '"', '}'}, 0), Defect.HEADER_NOT_UTF8, "byte 2");
        // A zero in two bytes, and half a surrogate pair in three: not the shortest form, and not a character.
        byte[] overlong = {'{', '"', (byte) 0xc0, (byte) 0x80, '"', '}'};
        assertDefect(file(overlong, 0), Defect.HEADER_NOT_UTF8);
        byte[] surrogate = {'{', '"', (byte) 0xed, (byte) 0xa0, (byte) 0x80, '"', '}'};
        assertDefect(file(surrogate, 0), Defect.HEADER_NOT_UTF8);
    }

    @Test
    void headerNotJson() throws IOException {
        assertDefect(file("{", 0), Defect.HEADER_NOT_JSON);
        assertDefect(file("{\"w\":", 0), Defect.HEADER_NOT_JSON);
        assertDefect(file("{'w':1}", 0), Defect.HEADER_NOT_JSON);
        assertDefect(file("{\"w\":{\"dtype\":\"F32\",}}", 0), Defect.HEADER_NOT_JSON);
        assertDefect(file("{\"\\ud800\":{}}", 0), Defect.HEADER_NOT_JSON, "surrogate");
        assertDefect(file(one("F32", "[01]", "[0,4]"), 4), Defect.HEADER_NOT_JSON);
        assertDefect(file(one("F32", "[" + "9".repeat(2000) + "]", "[0,4]"), 4), Defect.HEADER_NOT_JSON);
    }

    @Test
    void headerTooDeep() throws IOException {
        String deep = "[".repeat(1_000_000);
        assertDefect(file("{\"w\":{\"extra\":" + deep, 0), Defect.HEADER_TOO_DEEP);
        assertDefect(file("{\"w\":" + deep, 0), Defect.HEADER_TOO_DEEP);
        assertDefect(file("{\"__metadata__\":{\"k\":" + "{\"x\":".repeat(1000), 0), Defect.HEADER_TOO_DEEP);
    }

    @Test
    void headerPadding() throws IOException {
        assertDefect(file("{}\n", 0), Defect.HEADER_PADDING);
        assertDefect(file("{}\0\0\0", 0), Defect.HEADER_PADDING);
        assertDefect(file("{} {}", 0), Defect.HEADER_PADDING);
        assertDefect(file("{}}", 0), Defect.HEADER_PADDING);
    }

    @Test
    void duplicateKey() throws IOException {
        String w = entry("w", "U8", "[1]", "[0,1]");
        assertDefect(file("{" + w + "," + w + "}", 1), Defect.DUPLICATE_KEY, "\"w\"");
        assertDefect(file("{" + w + "," + w.replace("\"w\"", "\"\\u0077\"") + "}", 1), Defect.DUPLICATE_KEY, "\"w\"");
        assertDefect(
                file("{\"w\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1),
                Defect.DUPLICATE_KEY,
                "dtype");
        assertDefect(
                file("{\"w\":{\"shape\":[1],\"shape\":[1],\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1),
                Defect.DUPLICATE_KEY,
                "shape");
        assertDefect(file("{\"__metadata__\":{\"a\":\"1\",\"a\":\"1\"}}", 0), Defect.DUPLICATE_KEY, "\"a\"");
        assertDefect(file("{\"__metadata__\":{},\"__metadata__\":{}}", 0), Defect.DUPLICATE_KEY, "__metadata__");
    }

    @Test
    void metadataNotStrings() throws IOException {
        assertDefect(file("{\"__metadata__\":{\"a\":1}}", 0), Defect.METADATA_NOT_STRINGS, "\"a\"");
        assertDefect(file("{\"__metadata__\":{\"a\":null}}", 0), Defect.METADATA_NOT_STRINGS);
        assertDefect(file("{\"__metadata__\":[\"a\"]}", 0), Defect.METADATA_NOT_STRINGS);
        assertDefect(file("{\"__metadata__\":\"a\"}", 0), Defect.METADATA_NOT_STRINGS);
    }

    @Test
    void badEntry() throws IOException {
        assertDefect(file("{\"w\":[]}", 0), Defect.BAD_ENTRY, "\"w\"");
        assertDefect(file("{\"w\":null}", 0), Defect.BAD_ENTRY);
        assertDefect(file("{\"w\":{\"shape\":[0],\"data_offsets\":[0,0]}}", 0), Defect.BAD_ENTRY, "no dtype");
        assertDefect(file("{\"w\":{\"dtype\":\"U8\",\"data_offsets\":[0,0]}}", 0), Defect.BAD_ENTRY, "no shape");
        assertDefect(file("{\"w\":{\"dtype\":\"U8\",\"shape\":[0]}}", 0), Defect.BAD_ENTRY, "no data_offsets");
        assertDefect(file("{\"w\":{\"dtype\":5,\"shape\":[0],\"data_offsets\":[0,0]}}", 0), Defect.BAD_ENTRY, "dtype");
    }

    @Test
    void unknownDtype() throws IOException {
        assertDefect(file(one("F31", "[1]", "[0,4]"), 4), Defect.UNKNOWN_DTYPE, "\"w\"", "F31");
        assertDefect(file(one("f32", "[1]", "[0,4]"), 4), Defect.UNKNOWN_DTYPE);
        assertDefect(file(one("", "[1]", "[0,4]"), 4), Defect.UNKNOWN_DTYPE);
    }

    @Test
    void badShape() throws IOException {
        assertDefect(file(one("F32", "[-1]", "[0,4]"), 4), Defect.BAD_SHAPE, "\"w\"", "-1");
        assertDefect(file(one("F32", "[1.0]", "[0,4]"), 4), Defect.BAD_SHAPE);
        assertDefect(file(one("F32", "[\"1\"]", "[0,4]"), 4), Defect.BAD_SHAPE);
        assertDefect(file(one("F32", "[[1]]", "[0,4]"), 4), Defect.BAD_SHAPE);
        assertDefect(file(one("F32", "1", "[0,4]"), 4), Defect.BAD_SHAPE);
        assertDefect(file(one("F32", "[" + "1,".repeat(64) + "1]", "[0,4]"), 4), Defect.BAD_SHAPE, "64");
    }

    @Test
    void badOffsets() throws IOException {
        assertDefect(file(one("F32", "[1]", "[4,0]"), 4), Defect.BAD_OFFSETS, "\"w\"");
        assertDefect(file(one("F32", "[1]", "[-4,0]"), 4), Defect.BAD_OFFSETS);
        assertDefect(file(one("F32", "[1]", "[0]"), 4), Defect.BAD_OFFSETS);
        assertDefect(file(one("F32", "[1]", "[0,4,4]"), 4), Defect.BAD_OFFSETS);
        assertDefect(file(one("F32", "[1]", "[0,4.0]"), 4), Defect.BAD_OFFSETS);
        assertDefect(file(one("F32", "[1]", "{\"0\":4}"), 4), Defect.BAD_OFFSETS);
    }

    @Test
    void overlap() throws IOException {
        String header = "{" + entry("a", "F32", "[2]", "[0,8]") + "," + entry("b", "F32", "[2]", "[4,12]") + "}";
        assertDefect(file(header, 12), Defect.OVERLAP, "\"a\"", "\"b\"");
        String same = "{" + entry("a", "F32", "[2]", "[0,8]") + "," + entry("b", "F32", "[2]", "[0,8]") + "}";
        assertDefect(file(same, 8), Defect.OVERLAP);
    }

    @Test
    void hole() throws IOException {
        String header = "{" + entry("a", "F32", "[2]", "[0,8]") + "," + entry("b", "F32", "[2]", "[12,20]") + "}";
        assertDefect(file(header, 20), Defect.HOLE, "\"a\"", "\"b\"");
        assertDefect(file(one("F32", "[1]", "[4,8]"), 8), Defect.HOLE, "\"w\"", "start of the data");
    }

    @Test
    void sizeOverflow() throws IOException {
        assertDefect(file(one("F32", "[4294967296,4294967296]", "[0,0]"), 0), Defect.SIZE_OVERFLOW, "\"w\"");
        assertDefect(file(one("F32", "[2305843009213693952]", "[0,0]"), 0), Defect.SIZE_OVERFLOW);
        assertDefect(file(one("F32", "[18446744073709551616]", "[0,0]"), 0), Defect.SIZE_OVERFLOW);
        assertDefect(file(one("F32", "[1]", "[0,18446744073709551615]"), 4), Defect.SIZE_OVERFLOW);
        // As in the reference, a factor of 0 does not excuse the product before it.
        assertDefect(file(one("F32", "[4294967296,4294967296,0]", "[0,0]"), 0), Defect.SIZE_OVERFLOW);
    }

    @Test
    void sizeMismatch() throws IOException {
        assertDefect(file(one("F32", "[2,3]", "[0,20]"), 20), Defect.SIZE_MISMATCH, "\"w\"", "24", "20");
        assertDefect(file(one("F16", "[]", "[0,4]"), 4), Defect.SIZE_MISMATCH);
        assertDefect(file(one("F32", "[0]", "[0,4]"), 4), Defect.SIZE_MISMATCH);
    }

    @Test
    void partialByte() throws IOException {
        assertDefect(file(one("F4", "[3]", "[0,1]"), 1), Defect.PARTIAL_BYTE, "\"w\"", "F4");
        assertDefect(file(one("F6_E2M3", "[2]", "[0,1]"), 1), Defect.PARTIAL_BYTE);
    }

    @Test
    void dataTruncated() throws IOException {
        assertDefect(file(one("F32", "[2]", "[0,8]"), 7), Defect.DATA_TRUNCATED, "8 bytes", "only 7");
        assertDefect(file(one("U8", "[9000000000]", "[0,9000000000]"), 0), Defect.DATA_TRUNCATED);
    }

    @Test
    void trailingBytes() throws IOException {
        assertDefect(file(one("F32", "[2]", "[0,8]"), 9), Defect.TRAILING_BYTES, "1 bytes");
        assertDefect(file("{}", 1), Defect.TRAILING_BYTES);
    }

    @Test
    void aFileCutWhileItIsReadIsNoticed() throws IOException {
        Path path = folder.resolve("cut.safetensors");
        Files.write(path, file(one("F32", "[2]", "[0,8]"), 8));
        try (SafetensorsFile file = SafetensorsFile.open(path)) {
            Files.write(path, file("{}", 0));
            assertThatThrownBy(() -> file.read("w"))
                    .isInstanceOfSatisfying(
                            SafetensorsException.class,
                            e -> assertThat(e.defect()).isEqualTo(Defect.DATA_TRUNCATED));
        }
    }

    @Test
    void unknownFieldsOfAnEntryAreIgnored() throws IOException {
        Path path = folder.resolve("extra.safetensors");
        String header = "{\"w\":{\"extra\":{\"a\":[1,{\"b\":null}]},\"dtype\":\"U8\",\"shape\":[1],"
                + "\"data_offsets\":[0,1],\"more\":1e5}}";
        Files.write(path, file(header, 1));
        try (SafetensorsFile file = SafetensorsFile.open(path)) {
            assertThat(file.tensor("w").shape()).containsExactly(1);
        }
    }

    @Test
    void aTensorThatIsNotThereIsNamed() throws IOException {
        Path path = folder.resolve("empty.safetensors");
        Files.write(path, file("{\"__metadata__\":null}", 0));
        try (SafetensorsFile file = SafetensorsFile.open(path)) {
            assertThatThrownBy(() -> file.tensor("w"))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessageContaining("\"w\"");
        }
    }
}
