package org.lora4j.merge;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.lora4j.format.FormatException;
import org.lora4j.format.SafetensorsFile;
import org.lora4j.format.ShardedCheckpoint.Location;
import org.lora4j.format.TensorInfo;

/**
 * Whether files are those a manifest describes.
 *
 * @param differences everything that is not as the manifest says, a sentence each; none proves the files
 * @param tensors the tensors whose bytes were compared
 * @param uncovered the tensors the manifest has no hash of
 */
public record Verification(List<String> differences, long tensors, long uncovered) {
    /** Whether everything is as the manifest says. */
    public boolean isEqual() {
        return differences.isEmpty();
    }

    /**
     * Compares a merged checkpoint with a manifest.
     *
     * @param folder of the checkpoint
     * @throws IOException if a file cannot be read
     */
    public static Verification of(Path folder, MergeManifest manifest, MergeProgress progress) throws IOException {
        return of(folder, manifest.outputs(), manifest.others(), progress);
    }

    /** Compares the checkpoint adapters were merged into with what it was then. */
    public static Verification ofInputs(Path folder, MergeManifest manifest, MergeProgress progress)
            throws IOException {
        return of(folder, manifest.inputs(), Map.of(), progress);
    }

    private static Verification of(
            Path folder, List<FileRecord> records, Map<String, String> others, MergeProgress progress)
            throws IOException {
        Undo.refuse(folder);
        List<String> differences = new ArrayList<>();
        long compared = 0;
        long uncovered = 0;
        long total = records.stream().mapToLong(FileRecord::bytes).sum();
        long done = 0;
        for (FileRecord record : records) {
            Path path = folder.resolve(record.name());
            if (!Files.isRegularFile(path)) {
                differences.add(record.name() + " is missing");
                continue;
            }
            if (Files.size(path) != record.bytes()) {
                differences.add(record.name() + " has " + Files.size(path) + " bytes, not " + record.bytes());
                continue;
            }
            try (SafetensorsFile file = SafetensorsFile.open(path)) {
                if (!Hash.of(OutputFile.headerOf(file)).equals(record.header())) {
                    differences.add(record.name() + " has another header");
                    continue;
                }
                for (TensorInfo info : file.tensors().values()) {
                    String expected = record.tensors().get(info.name());
                    if (expected == null) {
                        uncovered++;
                    } else {
                        compared++;
                        if (!Hash.of(new Location(file, info)).equals(expected)) {
                            differences.add(record.name() + ": tensor \"" + info.name() + "\" has other values");
                        }
                    }
                    done += info.bytes();
                    progress.advance(done, total, info.name());
                }
            } catch (FormatException e) {
                differences.add(record.name() + " is defective: " + e.getMessage());
            }
        }
        for (Map.Entry<String, String> other : others.entrySet()) {
            Path path = folder.resolve(other.getKey());
            if (!Files.isRegularFile(path)) {
                differences.add(other.getKey() + " is missing");
            } else if (!Hash.of(path).equals(other.getValue())) {
                differences.add(other.getKey() + " has other bytes");
            }
        }
        return new Verification(List.copyOf(differences), compared, uncovered);
    }
}
