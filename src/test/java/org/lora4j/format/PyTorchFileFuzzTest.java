package org.lora4j.format;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.fail;

import com.sun.management.ThreadMXBean;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Damages files PyTorch wrote: each is refused by name or read whole, with little memory. */
class PyTorchFileFuzzTest {
    private static final List<String> FILES = List.of(
            "dtypes",
            "views",
            "module",
            "nothing",
            "legacy_dtypes",
            "legacy_views",
            "legacy_module",
            "big_endian_views");
    private static final int MUTATIONS = 4000;

    /** Far above what the files of a few kilobytes need, far below what a damaged size could ask for. */
    private static final long MOST_BYTES = 8 << 20;

    @TempDir
    Path folder;

    @Test
    void aDamagedFileIsRefusedByNameOrReadWhole() throws IOException {
        ThreadMXBean threads = (ThreadMXBean) ManagementFactory.getThreadMXBean();
        List<byte[]> files = new ArrayList<>();
        for (String name : FILES) {
            files.add(Files.readAllBytes(Golden.path("format/bin/" + name + ".bin")));
        }
        int read = 0;
        Map<String, Integer> refused = new TreeMap<>();
        for (int seed = 0; seed < MUTATIONS; seed++) {
            Path path = folder.resolve("mutant.bin");
            Random random = new Random(1_000_003L * seed + 17);
            byte[] whole = files.get(seed % files.size());
            byte[] mutant = mutate(whole, pickleEnd(whole), random);
            Files.write(path, mutant);
            long before = threads.getCurrentThreadAllocatedBytes();
            try (TensorFile file = PyTorchFile.open(path)) {
                for (TensorInfo info : file.tensors().values()) {
                    assertThat(info.bytes())
                            .as("seed %d", seed)
                            .isEqualTo(SafetensorsHeader.bytes(info.dtype(), info.shape()));
                    assertThat(file.read(info.name()).remaining()).isEqualTo((int) info.bytes());
                }
                read++;
            } catch (FormatException e) {
                assertThat(e.getMessage()).as("seed %d", seed).startsWith(path + ": ");
                refused.merge(kind(e.getMessage(), path), 1, Integer::sum);
            } catch (Throwable e) {
                fail("seed " + seed, e);
            }
            assertThat(threads.getCurrentThreadAllocatedBytes() - before)
                    .as("bytes taken, seed %d", seed)
                    .isLessThan(MOST_BYTES);
        }
        // The mutations reach most refusals, and leave some files whole: neither branch is idle.
        assertThat(read).as("read; refused %s", refused).isGreaterThan(200);
        assertThat(refused.keySet()).as("refused").hasSizeGreaterThan(20);
    }

    /** A message without names and numbers. */
    private static String kind(String message, Path path) {
        return message.substring(path.toString().length())
                .replaceAll("\\d+|\"[^\"]*\"|global \\S+|\\[[^]]*]", "")
                .replaceAll("0x[0-9a-f]*", "")
                .replaceAll("has \\S+ where", "has where");
    }

    /** Where the pickle with names and shapes ends: damage in front of it does most. */
    private static int pickleEnd(byte[] file) {
        byte[] end = {'u', '.'};
        for (int i = file.length - 2; i > 0; i--) {
            if (Arrays.equals(Arrays.copyOfRange(file, i, i + 2), end)) {
                return i + 2;
            }
        }
        return file.length;
    }

    private static byte[] mutate(byte[] file, int pickle, Random random) {
        byte[] mutant = file.clone();
        int at = random.nextInt(random.nextInt(3) > 0 ? pickle : file.length);
        switch (random.nextInt(6)) {
            case 0 -> mutant[at] ^= (byte) (1 << random.nextInt(8));
            case 1 -> mutant[at] = (byte) random.nextInt(256);
            case 2 -> {
                int tail = file.length - 1 - random.nextInt(Math.min(file.length, 1200));
                mutant[tail] = (byte) random.nextInt(256);
            }
            case 3 -> {
                byte[] opcodes = "()}]tRQbuseahjqrNKMJX.c\u0085\u0086\u0087\u0088\u008a"
                        .getBytes(java.nio.charset.StandardCharsets.ISO_8859_1);
                mutant[at] = opcodes[random.nextInt(opcodes.length)];
            }
            case 4 -> {
                int length = Math.min(1 + random.nextInt(40), file.length - at);
                System.arraycopy(file, random.nextInt(file.length - length), mutant, at, length);
            }
            default -> mutant = random.nextBoolean() ? Arrays.copyOf(file, at) : Arrays.copyOf(file, file.length + 9);
        }
        return mutant;
    }
}
