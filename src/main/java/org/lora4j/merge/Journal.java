package org.lora4j.merge;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.zip.CRC32C;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.FormatException;
import org.lora4j.format.StrictJson;

/**
 * Which files of a merge are finished: a line each, on disk before the next file begins. A line is the CRC-32C of the JSON
 * behind it, so that a damaged journal is not believed.
 */
final class Journal {
    static final String FILE_NAME = "merge-journal";

    /** A finished file and the tensors of the checkpoint it was made from. */
    record Finished(FileRecord output, Map<String, String> inputs) {}

    private final Path file;
    private final Map<String, Finished> finished = new LinkedHashMap<>();

    private Journal(Path file) {
        this.file = file;
    }

    /** Begins a journal in a folder. */
    static Journal create(Path folder, String fingerprint) throws IOException {
        Journal journal = new Journal(folder.resolve(FILE_NAME));
        Json.write(journal.file, line(Map.of("fingerprint", fingerprint)));
        return journal;
    }

    /**
     * Reads the journal of an interrupted merge. A last line without its end was being written when the process died and
     * does not count.
     *
     * @throws FormatException if it is that of another merge
     */
    static Journal open(Path folder, String fingerprint) throws IOException {
        Journal journal = new Journal(folder.resolve(FILE_NAME));
        String text;
        try {
            text = Files.readString(journal.file, StandardCharsets.UTF_8);
        } catch (CharacterCodingException e) {
            throw new FormatException(journal.file + ": is damaged; delete " + folder + " and start again", e);
        }
        List<String> lines =
                text.substring(0, text.lastIndexOf('\n') + 1).lines().toList();
        String source = journal.file.toString();
        for (int i = 0; i < lines.size(); i++) {
            Map<String, @Nullable Object> json = StrictJson.parseObject(checked(lines.get(i), folder), source);
            if (i == 0) {
                if (!fingerprint.equals(json.get("fingerprint"))) {
                    throw new FormatException(folder + ": is the beginning of a merge of other inputs or options, or of"
                            + " inputs that were changed since; delete it and start again");
                }
            } else {
                FileRecord record = FileRecord.parse(json.get("output"), source);
                journal.finished.put(
                        record.name(), new Finished(record, Json.strings(json.get("inputs_sha256"), source)));
            }
        }
        if (lines.isEmpty()) {
            throw new FormatException(source + ": is empty; delete " + folder + " and start again");
        }
        if (text.length() > text.lastIndexOf('\n') + 1) {
            try (FileChannel channel = FileChannel.open(journal.file, StandardOpenOption.WRITE)) {
                String whole = text.substring(0, text.lastIndexOf('\n') + 1);
                channel.truncate(whole.getBytes(StandardCharsets.UTF_8).length);
            }
        }
        return journal;
    }

    @Nullable
    Finished finished(String name) {
        return finished.get(name);
    }

    void add(FileRecord output, Map<String, String> inputs) throws IOException {
        Map<String, Object> json = new LinkedHashMap<>();
        json.put("output", output.json());
        json.put("inputs_sha256", inputs);
        ByteBuffer line = ByteBuffer.wrap(line(json));
        try (FileChannel channel = FileChannel.open(file, StandardOpenOption.WRITE, StandardOpenOption.APPEND)) {
            while (line.hasRemaining()) {
                channel.write(line);
            }
            channel.force(true);
        }
        finished.put(output.name(), new Finished(output, new LinkedHashMap<>(inputs)));
    }

    private static byte[] line(Object json) {
        String text = Json.line(json);
        return (crc(text) + " " + text + "\n").getBytes(StandardCharsets.UTF_8);
    }

    private static String crc(String json) {
        CRC32C crc = new CRC32C();
        crc.update(json.getBytes(StandardCharsets.UTF_8));
        return String.format(Locale.ROOT, "%08x", crc.getValue());
    }

    /** The JSON of a line. */
    private static byte[] checked(String line, Path folder) throws FormatException {
        String json = line.substring(Math.min(line.length(), 9));
        if (!line.equals(crc(json) + " " + json)) {
            throw new FormatException(
                    folder.resolve(FILE_NAME) + ": is damaged; delete " + folder + " and start again");
        }
        return json.getBytes(StandardCharsets.UTF_8);
    }

    void delete() throws IOException {
        Files.deleteIfExists(file);
    }
}
