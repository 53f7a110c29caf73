package org.lora4j.merge;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.FormatException;
import org.lora4j.format.StrictJson;

/**
 * What a merge did: the inputs and outputs with their hashes, the adapters with their scales, the versions of the program.
 * It says nothing of when or how long, so the same merge gives the same file.
 */
public final class MergeManifest {
    /** The file's name in the folder of a merged checkpoint. */
    public static final String FILE_NAME = "merge-manifest.json";

    private static final String FORMAT = "lora4j merge manifest 1";
    private static final long MAX_BYTES = 256 << 20;

    private final Map<String, Object> json;
    private final boolean complete;
    private final String fingerprint;
    private final List<FileRecord> inputs;
    private final List<FileRecord> outputs;
    private final Map<String, String> others;

    private MergeManifest(
            Map<String, Object> json,
            boolean complete,
            String fingerprint,
            List<FileRecord> inputs,
            List<FileRecord> outputs,
            Map<String, String> others) {
        this.json = json;
        this.complete = complete;
        this.fingerprint = fingerprint;
        this.inputs = List.copyOf(inputs);
        this.outputs = List.copyOf(outputs);
        this.others = others;
    }

    static MergeManifest of(
            MergeSession session,
            boolean complete,
            String fingerprint,
            List<FileRecord> inputs,
            List<FileRecord> outputs,
            Map<String, String> others)
            throws IOException {
        Map<String, Object> json = new LinkedHashMap<>();
        json.put("format", FORMAT);
        json.putAll(session.description());
        json.put("fingerprint", fingerprint);
        json.put("covers", complete ? "everything" : "changed tensors");
        json.put("changes", session.changes());
        json.put("notes", session.matching().notes());
        json.put("inputs", inputs.stream().map(FileRecord::json).toList());
        json.put("outputs", outputs.stream().map(FileRecord::json).toList());
        json.put("other_files_sha256", others);
        return new MergeManifest(json, complete, fingerprint, inputs, outputs, others);
    }

    /**
     * Reads the manifest of a merged checkpoint.
     *
     * @param file a manifest, or the folder that holds one
     * @throws FormatException if it is no manifest
     */
    public static MergeManifest read(Path file) throws IOException {
        Path path = Files.isDirectory(file) ? file.resolve(FILE_NAME) : file;
        if (!Files.exists(path)) {
            throw new NoSuchFileException(
                    path.toString(), null, "there is no manifest; only checkpoints that lora4j merged have one");
        }
        String source = path.toString();
        Map<String, @Nullable Object> read = StrictJson.readObject(path, MAX_BYTES);
        if (!FORMAT.equals(read.get("format"))
                || !(read.get("fingerprint") instanceof String fingerprint)
                || !(read.get("covers") instanceof String covers)) {
            throw new FormatException(source + ": is no merge manifest of this version of lora4j");
        }
        List<FileRecord> inputs = records(read, "inputs", source);
        List<FileRecord> outputs = records(read, "outputs", source);
        Map<String, String> others = Json.strings(read.get("other_files_sha256"), source);
        Map<String, Object> json = new LinkedHashMap<>();
        read.forEach((key, value) -> {
            if (value != null) {
                json.put(key, value);
            }
        });
        return new MergeManifest(json, covers.equals("everything"), fingerprint, inputs, outputs, others);
    }

    private static List<FileRecord> records(Map<String, @Nullable Object> json, String name, String source)
            throws IOException {
        List<FileRecord> records = new ArrayList<>();
        for (Object entry : Json.list(json.get(name), name, source)) {
            records.add(FileRecord.parse(entry, source));
        }
        return records;
    }

    void write(Path folder) throws IOException {
        Json.write(folder.resolve(FILE_NAME), json);
    }

    /** Whether every tensor has a hash; a merge in place hashes only what it changed. */
    public boolean complete() {
        return complete;
    }

    /** A hash of everything the result depends on. */
    public String fingerprint() {
        return fingerprint;
    }

    /** What is merged and how, apart from where files lie. */
    String recipe() {
        return recipe(json);
    }

    static String recipe(Map<String, Object> description) {
        List<Object> adapters = new ArrayList<>();
        if (description.get("adapters") instanceof List<?> list) {
            for (Object adapter : list) {
                if (adapter instanceof Map<?, ?> map) {
                    adapters.add(List.of(String.valueOf(map.get("weight")), String.valueOf(map.get("files_sha256"))));
                }
            }
        }
        return Json.line(List.of(
                String.valueOf(description.get("lora4j")),
                String.valueOf(description.get("operations")),
                adapters,
                String.valueOf(description.get("options"))));
    }

    /** The files of the checkpoint before the merge. */
    public List<FileRecord> inputs() {
        return inputs;
    }

    /** The files of the result. */
    public List<FileRecord> outputs() {
        return outputs;
    }

    /** SHA-256 of the other files of the result, such as {@code config.json}, by name. */
    public Map<String, String> others() {
        return Collections.unmodifiableMap(others);
    }

    /** Everything as JSON values. */
    public Map<String, Object> json() {
        return Collections.unmodifiableMap(json);
    }

    /** The version in the manifest of the jar, or that it is a build of the source tree. */
    static String version() {
        String version = MergeManifest.class.getPackage().getImplementationVersion();
        return version == null ? "built from source" : version;
    }
}
