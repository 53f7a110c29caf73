package org.lora4j.merge;

import java.io.IOException;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/**
 * What a merge would do.
 *
 * @param changes the tensors that change, in the order they were found
 * @param notes what is worth knowing, a sentence each
 * @param files the files of the result with their sizes
 * @param carried the other files of the result
 * @param leftBehind other weights in the checkpoint's folder, which the result will not have
 * @param bytesRead bytes of the checkpoint
 * @param bytesWritten bytes of the result
 * @param seconds how long it may take, at {@value #ASSUMED_RATE} bytes a second written, which no disk promises
 */
public record MergePlan(
        List<Change> changes,
        List<String> notes,
        Map<String, Long> files,
        List<String> carried,
        List<String> leftBehind,
        long bytesRead,
        long bytesWritten,
        double seconds) {
    /** Bytes a second the time is worked out with. */
    static final double ASSUMED_RATE = 0.5e9;

    /** The tensors with a signal below this many decibels are worth a warning. */
    public static final double LOW_SIGNAL = 6;

    /**
     * A tensor that changes.
     *
     * @param tensor its name in the checkpoint
     * @param file the file of the result it is in
     * @param shape its sizes in the result
     * @param from its type in the checkpoint; null if it is new
     * @param to its type in the result
     * @param keys the tensors of the adapters that change it, each with its adapter's place
     * @param actions what they do, such as {@code adds r=16 scale=2}
     * @param deltaNorm the Frobenius norm of what is added, from the factors; NaN if nothing is added
     * @param weightNorm that of the weight, from a sample; NaN if it is new
     * @param signal the norm of what is added over that of the rounding to the type of the result, in decibels; NaN if
     *     nothing is added
     * @param bytes its size in the result
     */
    public record Change(
            String tensor,
            String file,
            List<Long> shape,
            @Nullable String from,
            String to,
            List<String> keys,
            List<String> actions,
            double deltaNorm,
            double weightNorm,
            double signal,
            long bytes) {
        /** How large what is added is beside the weight. */
        public double ratio() {
            return deltaNorm / weightNorm;
        }
    }

    static MergePlan of(MergeSession session) throws IOException {
        PlanNumbers numbers = new PlanNumbers(session);
        List<Change> changes = new ArrayList<>();
        Map<String, Long> files = new LinkedHashMap<>();
        for (OutputFile file : session.files()) {
            files.put(file.name(), file.bytes());
            for (OutputFile.Tensor tensor : file.tensors()) {
                if (tensor.edit() != null) {
                    changes.add(numbers.change(file.name(), tensor, tensor.edit()));
                }
            }
        }
        List<String> notes = new ArrayList<>(session.matching().notes());
        changes.stream()
                .filter(change -> change.signal() < LOW_SIGNAL)
                .forEach(change -> notes.add(String.format(
                        java.util.Locale.ROOT,
                        "%s: what is added is only %.1f dB above the rounding of %s; %s",
                        change.tensor(),
                        change.signal(),
                        change.to(),
                        "a wider type or stochastic rounding keeps more of it")));
        long read = 0;
        for (FileState state : session.base().states()) {
            read += state.size();
        }
        List<String> carried = CarriedFiles.of(session.base()).stream()
                .map(path -> path.getFileName().toString())
                .toList();
        long written = session.bytes();
        return new MergePlan(
                List.copyOf(changes),
                List.copyOf(notes),
                files,
                carried,
                CarriedFiles.leftBehind(session.base()),
                read,
                written,
                written / ASSUMED_RATE);
    }

    /** Everything as JSON values. */
    public Map<String, Object> json() {
        Map<String, Object> json = new LinkedHashMap<>();
        List<Object> list = new ArrayList<>();
        for (Change change : changes) {
            Map<String, Object> entry = new LinkedHashMap<>();
            entry.put("tensor", change.tensor());
            entry.put("file", change.file());
            entry.put("shape", change.shape());
            if (change.from() != null) {
                entry.put("from", change.from());
            }
            entry.put("to", change.to());
            entry.put("keys", change.keys());
            entry.put("actions", change.actions());
            put(entry, "delta_norm", change.deltaNorm());
            put(entry, "weight_norm_sampled", change.weightNorm());
            put(entry, "delta_to_weight", change.ratio());
            put(entry, "signal_to_rounding_db", change.signal());
            entry.put("bytes", change.bytes());
            list.add(entry);
        }
        json.put("changes", list);
        json.put("notes", notes);
        json.put("files", files);
        json.put("other_files", carried);
        json.put("left_behind", leftBehind);
        json.put("bytes_read", bytesRead);
        json.put("bytes_written", bytesWritten);
        json.put("seconds", seconds);
        return json;
    }

    /** JSON has no NaN. */
    private static void put(Map<String, Object> entry, String key, double value) {
        if (Double.isFinite(value)) {
            entry.put(key, value);
        }
    }
}
