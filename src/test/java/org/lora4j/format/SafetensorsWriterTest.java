package org.lora4j.format;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.channels.SeekableByteChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.nio.file.attribute.PosixFilePermission;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class SafetensorsWriterTest {
    @TempDir
    Path folder;

    private static TensorSource bytes(int count) {
        return out -> out.write(ByteBuffer.allocate(count));
    }

    private static SafetensorsWriter writer() {
        return new SafetensorsWriter(Map.of());
    }

    @Test
    void aFailedWriteLeavesTheOldFileAndNothingElse() throws IOException {
        Path file = folder.resolve("w.safetensors");
        writer().add("w", DType.U8, new long[] {3}, bytes(3)).write(file);
        byte[] before = Files.readAllBytes(file);
        SafetensorsWriter failing = writer().add("a", DType.F64, new long[] {5}, bytes(40))
                .add("b", DType.U8, new long[] {5}, out -> {
                    out.write(ByteBuffer.allocate(2));
                    throw new IOException("disk full");
                });
        assertThatThrownBy(() -> failing.write(file)).hasMessage("disk full");
        assertThat(Files.readAllBytes(file)).isEqualTo(before);
        try (var left = Files.list(folder)) {
            assertThat(left).containsExactly(file);
        }
    }

    @Test
    void aSourceMustSupplyItsBytesExactly() {
        Path file = folder.resolve("w.safetensors");
        for (int count : List.of(0, 11, 13)) {
            SafetensorsWriter writer = writer().add("w", DType.F32, new long[] {3}, bytes(count));
            assertThatThrownBy(() -> writer.write(file)).as("%d bytes", count).hasMessageContainingAll("\"w\"", "12");
        }
        assertThat(folder).isEmptyDirectory();
    }

    @Test
    void impossibleTensorsAreRefusedByName() {
        assertThatThrownBy(() -> writer().add("__metadata__", DType.U8, new long[0], bytes(1)))
                .hasMessageContaining("__metadata__");
        assertThatThrownBy(() -> writer().add("\ud800", DType.U8, new long[0], bytes(1)))
                .isInstanceOf(IllegalArgumentException.class);
        assertThatThrownBy(() -> writer().add("w", DType.U8, new long[] {-1}, bytes(1)))
                .hasMessageContainingAll("\"w\"", "negative");
        assertThatThrownBy(() -> writer().add("w", DType.F64, new long[] {1L << 40, 1L << 40}, bytes(1)))
                .hasMessageContainingAll("\"w\"", "63 bits");
        assertThatThrownBy(() -> writer().add("w", DType.F4, new long[] {3}, bytes(2)))
                .hasMessageContainingAll("\"w\"", "whole bytes");
        assertThatThrownBy(() -> writer().add("w", DType.U8, new long[65], bytes(0)))
                .hasMessageContainingAll("\"w\"", "65 dimensions");
        SafetensorsWriter writer = writer().add("w", DType.U8, new long[0], bytes(1));
        assertThatThrownBy(() -> writer.add("w", DType.U8, new long[0], bytes(1)))
                .hasMessageContainingAll("\"w\"", "before");
        assertThatThrownBy(() -> new SafetensorsWriter(Map.of("k", "\udc00"))).hasMessageContaining("\"k\"");
    }

    @Test
    void aMissingFolderIsNamed() {
        Path file = folder.resolve("nowhere/w.safetensors");
        assertThatThrownBy(() -> writer().write(file))
                .isInstanceOf(IOException.class)
                .hasMessageContaining("nowhere");
    }

    @Test
    void theFileHasThePermissionsOfAnyOther() throws IOException {
        Path file = folder.resolve("w.safetensors");
        Path plain = Files.createFile(folder.resolve("plain"));
        writer().write(file);
        assertThat(Files.getPosixFilePermissions(file))
                .isEqualTo(Files.getPosixFilePermissions(plain))
                .contains(PosixFilePermission.OWNER_READ);
    }

    @Test
    void aReaderKeepsTheContentThatIsReplaced() throws IOException {
        Path file = folder.resolve("w.safetensors");
        writer().add("w", DType.U8, new long[] {2}, out -> out.write(ByteBuffer.wrap(new byte[] {1, 2})))
                .write(file);
        try (SafetensorsFile old = SafetensorsFile.open(file)) {
            ByteBuffer mapped = old.map("w");
            writer().add("w", DType.U8, new long[] {2}, bytes(2)).write(file);
            assertThat(mapped).isEqualTo(ByteBuffer.wrap(new byte[] {1, 2}));
            assertThat(old.read("w")).isEqualTo(ByteBuffer.wrap(new byte[] {1, 2}));
        }
    }

    /** The file is sparse: the holes of its 5 GiB take no space on disk. */
    @Test
    void tensorsBeyondTwoGibibytesAreReadInParts() throws IOException {
        long big = 5L << 30;
        String header = "{\"big\":{\"dtype\":\"U8\",\"shape\":[" + big + "],\"data_offsets\":[0," + big + "]},"
                + "\"small\":{\"dtype\":\"I32\",\"shape\":[2],\"data_offsets\":[" + big + "," + (big + 8) + "]}}";
        Path file = folder.resolve("big.safetensors");
        ByteBuffer end = ByteBuffer.allocate(9).order(ByteOrder.LITTLE_ENDIAN);
        end.put((byte) 77).putInt(-5).putInt(6).flip();
        try (SeekableByteChannel out = FileChannel.open(
                file, StandardOpenOption.CREATE_NEW, StandardOpenOption.WRITE, StandardOpenOption.SPARSE)) {
            ByteBuffer start = ByteBuffer.allocate(8 + header.length()).order(ByteOrder.LITTLE_ENDIAN);
            out.write(start.putLong(header.length())
                    .put(header.getBytes(StandardCharsets.UTF_8))
                    .flip());
            out.position(8 + header.length() + big - 1);
            out.write(end);
        }
        try (SafetensorsFile opened = SafetensorsFile.open(file)) {
            ByteBuffer part = ByteBuffer.allocate(3);
            opened.read("big", big - 3, part);
            assertThat(part.array()).containsExactly(0, 0, 77);
            ByteBuffer small = opened.map("small");
            assertThat(List.of(small.getInt(), small.getInt())).containsExactly(-5, 6);
            assertThatThrownBy(() -> opened.map("big")).hasMessageContainingAll("\"big\"", "in parts");
            assertThatThrownBy(() -> opened.read("big")).hasMessageContainingAll("\"big\"", "in parts");
            assertThatThrownBy(() -> opened.read("big", big - 2, ByteBuffer.allocate(3)))
                    .isInstanceOf(IllegalArgumentException.class);
        }
    }
}
