package org.lora4j.train;

import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.AbstractList;
import java.util.Arrays;
import java.util.zip.CRC32C;

/**
 * The lines of a file, read and tokenised each time they are asked for: of each line only its place is kept. All lines are
 * read once at first, so that one with a defect is found before anything is trained.
 */
final class StreamedSamples extends AbstractList<Sample> {
    private final Path file;
    private final Encoder encoder;
    private final CRC32C crc = new CRC32C();
    private long[] starts = new long[1024];
    private int[] lengths = new int[1024];
    private int[] numbers = new int[1024];
    private int count;

    /** Makes a sample of a line that is not empty. */
    interface Encoder {
        /** @param where file and line, for messages */
        Sample encode(String line, String where);

        /** Refuses a line with a defect, without tokenising it. */
        void check(String line, String where);
    }

    StreamedSamples(Path file, Encoder encoder) throws IOException {
        this.file = file;
        this.encoder = encoder;
        index();
        if (count == 0) {
            throw new IllegalArgumentException(file + " has no examples: write at least one line of JSON");
        }
    }

    private void index() throws IOException {
        byte[] buffer = new byte[1 << 16];
        byte[] line = new byte[1 << 12];
        int length = 0;
        int number = 1;
        long at = 0;
        try (InputStream in = Files.newInputStream(file)) {
            for (int read = in.read(buffer); read >= 0; read = in.read(buffer)) {
                crc.update(buffer, 0, read);
                for (int i = 0; i < read; i++) {
                    at++;
                    if (buffer[i] == '\n') {
                        add(line, length, at - 1 - length, number++);
                        length = 0;
                        continue;
                    }
                    line = length == line.length ? Arrays.copyOf(line, 2 * length) : line;
                    line[length++] = buffer[i];
                }
            }
        } catch (IOException e) {
            throw new IOException("cannot read the examples of " + file + ": check that it exists", e);
        }
        add(line, length, at - length, number);
    }

    private void add(byte[] line, int length, long start, int number) {
        String text = text(line, length, number);
        if (text.isBlank()) {
            return;
        }
        encoder.check(text, where(number));
        if (count == starts.length) {
            starts = Arrays.copyOf(starts, 2 * count);
            lengths = Arrays.copyOf(lengths, 2 * count);
            numbers = Arrays.copyOf(numbers, 2 * count);
        }
        starts[count] = start;
        lengths[count] = length;
        numbers[count++] = number;
    }

    private String where(int number) {
        return file + ", line " + number;
    }

    private String text(byte[] line, int length, int number) {
        try {
            return StandardCharsets.UTF_8
                    .newDecoder()
                    .decode(ByteBuffer.wrap(line, 0, length))
                    .toString();
        } catch (CharacterCodingException e) {
            throw new IllegalArgumentException(where(number) + " is not UTF-8: convert the file", e);
        }
    }

    @Override
    public Sample get(int index) {
        ByteBuffer line = ByteBuffer.allocate(lengths[index]);
        try (FileChannel channel = FileChannel.open(file)) {
            while (line.hasRemaining() && channel.read(line, starts[index] + line.position()) >= 0) {
                continue;
            }
        } catch (IOException e) {
            throw new UncheckedIOException("cannot read " + where(numbers[index]) + ": " + e.getMessage(), e);
        }
        if (line.hasRemaining()) {
            throw new IllegalStateException(file + " has become shorter since the run began: leave it as it is");
        }
        return encoder.encode(text(line.array(), lengths[index], numbers[index]), where(numbers[index]));
    }

    @Override
    public int size() {
        return count;
    }

    /** Of the whole file. */
    String checksum() {
        return count + " streamed examples, CRC-32C " + Long.toHexString(crc.getValue());
    }
}
