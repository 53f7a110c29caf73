package org.lora4j.format;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.fail;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.EnumMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.stream.LongStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.lora4j.format.SafetensorsException.Defect;

class SafetensorsPropertyTest {
    private static final List<String> FRAGMENTS = List.of(
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"",
            "0",
            "-1",
            "1e9",
            "9223372036854775807",
            "18446744073709551615",
            "null",
            "\"F32\"",
            "\"dtype\"",
            "\"shape\"",
            "\"data_offsets\"",
            "\"__metadata__\"",
            "[[[[[[[[",
            " ",
            "\u0000",
            "\\ud800");

    @TempDir
    Path folder;

    static LongStream seeds() {
        return LongStream.range(0, 60);
    }

    @ParameterizedTest
    @MethodSource("seeds")
    void whatIsWrittenIsRead(long seed) throws IOException {
        RandomFile random = new RandomFile(seed);
        Path path = folder.resolve("random.safetensors");
        random.write(path);
        try (SafetensorsFile file = SafetensorsFile.open(path)) {
            assertSame(file, random, "seed " + seed);
            assertThat(file.dataOffset() % 8).isZero();
        }
        Path again = folder.resolve("again.safetensors");
        random.write(again);
        assertThat(again).as("seed %d", seed).hasSameBinaryContentAs(path);
    }

    private static void assertSame(SafetensorsFile file, RandomFile random, String what) throws IOException {
        assertThat(file.metadata()).as(what).isEqualTo(random.metadata);
        assertThat(file.tensors().keySet()).as(what).isEqualTo(random.tensors.keySet());
        for (Map.Entry<String, RandomFile.Tensor> entry : random.tensors.entrySet()) {
            TensorInfo info = file.tensor(entry.getKey());
            assertThat(info.dtype()).as(what).isEqualTo(entry.getValue().dtype());
            assertThat(info.shape()).as(what).isEqualTo(entry.getValue().shape());
            byte[] data = entry.getValue().data();
            assertThat(file.read(entry.getKey())).as(what).isEqualTo(ByteBuffer.wrap(data));
            int from = data.length / 3;
            ByteBuffer part = ByteBuffer.allocate(data.length - from - data.length / 5);
            file.read(entry.getKey(), from, part);
            assertThat(part.flip()).as(what).isEqualTo(ByteBuffer.wrap(data, from, part.capacity()));
        }
    }

    @Test
    void aDamagedFileIsRefusedByNameOrReadWhole() throws IOException {
        Map<Defect, Integer> refused = new EnumMap<>(Defect.class);
        int read = 0;
        List<byte[]> files = new ArrayList<>();
        for (long seed = 0; seed < 40; seed++) {
            Path path = folder.resolve("whole.safetensors");
            new RandomFile(seed).write(path);
            files.add(Files.readAllBytes(path));
        }
        for (long seed = 0; seed < 3000; seed++) {
            Path path = folder.resolve("mutant.safetensors");
            byte[] mutant = mutate(files.get((int) (seed % 40)), new Random(1_000_003 * seed + 17));
            Files.write(path, mutant);
            try (SafetensorsFile file = SafetensorsFile.open(path)) {
                assertReadable(file, mutant, "seed " + seed);
                read++;
            } catch (SafetensorsException e) {
                assertThat(e.getMessage()).as("seed %d", seed).startsWith(path + ": ");
                refused.merge(e.defect(), 1, Integer::sum);
            } catch (Throwable e) {
                fail("seed " + seed, e);
            }
        }
        // The mutations reach most defects, and leave some files whole: neither branch is idle.
        assertThat(read).as("read; refused %s", refused).isGreaterThan(100);
        assertThat(refused.keySet()).as("refused").hasSizeGreaterThan(12);
    }

    /** A file that is accepted covers its bytes exactly, and each tensor has the bytes of its place. */
    private static void assertReadable(SafetensorsFile file, byte[] bytes, String what) throws IOException {
        long covered = file.dataOffset();
        for (TensorInfo info : file.tensors().values()) {
            assertThat(file.dataOffset() + info.begin()).as(what).isEqualTo(covered);
            assertThat(info.bytes()).as(what).isEqualTo(SafetensorsHeader.bytes(info.dtype(), info.shape()));
            ByteBuffer expected = ByteBuffer.wrap(bytes, (int) covered, (int) info.bytes());
            assertThat(file.read(info.name())).as(what).isEqualTo(expected);
            covered += info.bytes();
        }
        assertThat(covered).as(what).isEqualTo(bytes.length);
    }

    private static byte[] mutate(byte[] file, Random random) {
        int header = (int) ByteBuffer.wrap(file).order(ByteOrder.LITTLE_ENDIAN).getLong();
        return switch (random.nextInt(8)) {
            case 0 -> flip(file, 0, file.length, random);
            case 1 -> flip(file, 0, 8, random);
            case 2 -> flip(file, 8, 8 + header, random);
            case 3 -> Arrays.copyOf(file, random.nextInt(file.length));
            case 4 -> Arrays.copyOf(file, file.length + 1 + random.nextInt(20));
            case 5 -> insert(file, header, random);
            case 6 -> digit(file, header, random);
            default -> repeatPart(file, header, random);
        };
    }

    private static byte[] flip(byte[] file, int from, int to, Random random) {
        byte[] mutant = file.clone();
        mutant[from + random.nextInt(to - from)] ^= (byte) (1 << random.nextInt(8));
        return mutant;
    }

    /** Inserts a fragment of JSON into the header and corrects its length. */
    private static byte[] insert(byte[] file, int header, Random random) {
        byte[] fragment = FRAGMENTS.get(random.nextInt(FRAGMENTS.size())).getBytes(StandardCharsets.UTF_8);
        return splice(file, header, 8 + random.nextInt(header), fragment);
    }

    /** Copies a part of the header to another place in it. */
    private static byte[] repeatPart(byte[] file, int header, Random random) {
        int from = 8 + random.nextInt(header);
        int to = Math.min(8 + header, from + 1 + random.nextInt(80));
        return splice(file, header, 8 + random.nextInt(header), Arrays.copyOfRange(file, from, to));
    }

    private static byte[] splice(byte[] file, int header, int at, byte[] part) {
        ByteBuffer mutant = ByteBuffer.allocate(file.length + part.length).order(ByteOrder.LITTLE_ENDIAN);
        mutant.putLong(header + part.length);
        mutant.put(file, 8, at - 8).put(part).put(file, at, file.length - at);
        return mutant.array();
    }

    /** Replaces one digit of a shape or an offset. */
    private static byte[] digit(byte[] file, int header, Random random) {
        byte[] mutant = file.clone();
        int start = random.nextInt(header);
        for (int i = 0; i < header; i++) {
            int at = 8 + (start + i) % header;
            if (mutant[at] >= '0' && mutant[at] <= '9') {
                mutant[at] = (byte) ('0' + random.nextInt(10));
                break;
            }
        }
        return mutant;
    }
}
