package org.lora4j.merge;

import java.io.Closeable;
import java.io.IOException;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.lora4j.format.DType;
import org.lora4j.format.SafetensorsFile;
import org.lora4j.ops.LibTorch;
import org.lora4j.ops.Ops;

/** A merge that is worked out and not begun: open inputs, what changes, and the files of the result. */
final class MergeSession implements Closeable {
    private final MergeOptions options;
    private final BaseCheckpoint base;
    private final List<AdapterSource> adapters = new ArrayList<>();
    private final Map<String, TensorEdit> edits = new LinkedHashMap<>();
    private final Matching matching;
    private final List<OutputFile> files;

    private MergeSession(MergeOptions options, BaseCheckpoint base) throws IOException {
        this.options = options;
        this.base = base;
        try {
            for (WeightedAdapter spec : options.adapters()) {
                adapters.add(AdapterSource.open(adapters.size(), spec));
            }
            matching = new Matching(base, adapters, options);
            matching.run();
            matching.edits().forEach(edit -> edits.put(edit.name, edit));
            files = OutputFile.layout(base, edits, options);
        } catch (Throwable failure) {
            close();
            throw failure;
        }
    }

    /** @throws AdapterMisfitException if the adapters do not fit the checkpoint */
    static MergeSession open(MergeOptions options) throws IOException {
        Undo.refuse(options.checkpoint());
        return new MergeSession(options, BaseCheckpoint.open(options.checkpoint()));
    }

    MergeOptions options() {
        return options;
    }

    BaseCheckpoint base() {
        return base;
    }

    List<AdapterSource> adapters() {
        return adapters;
    }

    Matching matching() {
        return matching;
    }

    /** The changed tensors. */
    Map<String, TensorEdit> edits() {
        return edits;
    }

    /** The files of the result. */
    List<OutputFile> files() {
        return files;
    }

    long bytes() {
        return files.stream().mapToLong(OutputFile::bytes).sum();
    }

    /** How a tensor of the result comes about. */
    Pipeline.Task task(OutputFile.Tensor tensor, boolean keepOriginal) throws IOException {
        TensorEdit edit = tensor.edit();
        if (tensor.isCopy()) {
            return new Pipeline.Task(tensor, TensorCopy.of(location(tensor)), true, null);
        }
        boolean stored = edit == null || edit.base != null && edit.value == null && edit.copyOf == null;
        Bytes original = null;
        if (keepOriginal && (edit == null || edit.base != null)) {
            var location = edit == null || edit.base == null ? location(tensor) : edit.base;
            boolean sameShape = java.util.Arrays.equals(
                    location.info().shape(), tensor.info().shape());
            original = sameShape ? Bytes.of(location.file(), location.info().name()) : null;
        }
        TensorEdit.Value value = edit == null ? null : edit.value;
        if (edit != null && value != null && value.dtype() == tensor.info().dtype() && onlyReplaced(edit)) {
            Bytes bytes = Bytes.of(adapters.get(value.adapter()).file(), value.key());
            long size = Numbers.count(value.shape()) * value.dtype().bits() / 8;
            return new Pipeline.Task(tensor, new TensorCopy(bytes, size, edit.base), false, original);
        }
        TensorMerge work = new TensorMerge(tensor, adapters, options, Pipeline.TILE_ELEMENTS);
        return new Pipeline.Task(tensor, work, stored, original);
    }

    private static boolean onlyReplaced(TensorEdit edit) {
        boolean types = edit.base == null || edit.base.info().dtype() == edit.dtype() && sameType(edit);
        return types && edit.updates.isEmpty() && edit.biases.isEmpty() && edit.tokens.isEmpty();
    }

    private static boolean sameType(TensorEdit edit) {
        DType value = edit.value == null ? edit.dtype() : edit.value.dtype();
        return value == edit.dtype();
    }

    private static org.lora4j.format.ShardedCheckpoint.Location location(OutputFile.Tensor tensor) {
        if (tensor.source() == null) {
            throw new IllegalStateException("tensor \"" + tensor.info().name() + "\" has no source");
        }
        return tensor.source();
    }

    /** A hash of everything the result depends on: what a merge that is continued must have in common with its beginning. */
    String fingerprint() throws IOException {
        Map<String, Object> all = new LinkedHashMap<>(description());
        // Where inputs lie does not matter.
        all.remove("checkpoint");
        all.put("adapters", adapterHashes());
        List<Object> inputs = new ArrayList<>();
        for (SafetensorsFile file : base.files()) {
            FileState state = FileState.of(file.path());
            inputs.add(List.of(
                    file.path().getFileName().toString(),
                    state.size(),
                    state.modified().toMillis(),
                    Hash.of(OutputFile.headerOf(file))));
        }
        all.put("inputs", inputs);
        all.put("configuration", Json.line(base.config()));
        return Hash.of(Json.line(all).getBytes(java.nio.charset.StandardCharsets.UTF_8));
    }

    private List<Object> adapterHashes() throws IOException {
        List<Object> list = new ArrayList<>();
        for (AdapterSource adapter : adapters) {
            list.add(List.of(adapter.weight(), adapter.hashes()));
        }
        return list;
    }

    /** What is merged and how, for the manifest. */
    Map<String, Object> description() throws IOException {
        LibTorch.load();
        Map<String, Object> all = new LinkedHashMap<>();
        all.put("lora4j", MergeManifest.version());
        all.put("operations", Ops.current().name());
        all.put("checkpoint", base.path().toAbsolutePath().normalize().toString());
        List<Object> list = new ArrayList<>();
        for (AdapterSource adapter : adapters) {
            Map<String, Object> entry = new LinkedHashMap<>();
            entry.put("folder", adapter.folder().toAbsolutePath().normalize().toString());
            entry.put("weight", adapter.weight());
            entry.put("files_sha256", adapter.hashes());
            list.add(entry);
        }
        all.put("adapters", list);
        Map<String, Object> how = new LinkedHashMap<>();
        DType dtype = options.dtype();
        how.put("dtype", dtype == null ? "kept" : dtype.name());
        how.put("max_shard_bytes", options.maxShardBytes());
        how.put("tied", options.tied().name().toLowerCase(java.util.Locale.ROOT));
        how.put("rounding", options.seed().isPresent() ? "stochastic" : "nearest");
        if (options.seed().isPresent()) {
            how.put("seed", options.seed().getAsLong());
        }
        how.put("device", "cpu");
        all.put("options", how);
        return all;
    }

    /** Where every change comes from, for the manifest. */
    List<Object> changes() {
        List<Object> changes = new ArrayList<>();
        for (TensorEdit edit : edits.values()) {
            Map<String, Object> entry = new LinkedHashMap<>();
            entry.put("tensor", edit.name);
            if (edit.copyOf != null) {
                entry.put("copy_of", edit.copyOf.info().name());
            }
            TensorEdit.Value value = edit.value;
            if (value != null) {
                entry.put("replaced_by", Map.of("adapter", value.adapter(), "key", value.key()));
            }
            List<Object> products = new ArrayList<>();
            edit.updates.forEach(update -> {
                Map<String, Object> product = new LinkedHashMap<>();
                product.put("adapter", update.adapter());
                product.put("key", update.a());
                product.put("rank", update.rank());
                product.put("scale", update.scale());
                products.add(product);
            });
            edit.biases.forEach(
                    bias -> products.add(Map.of("adapter", bias.adapter(), "key", bias.key(), "scale", bias.scale())));
            edit.tokens.forEach(rows ->
                    products.add(Map.of("adapter", rows.adapter(), "key", rows.key(), "rows", rows.ids().length)));
            if (!products.isEmpty()) {
                entry.put("adds", products);
            }
            changes.add(entry);
        }
        return changes;
    }

    void checkUnchanged() throws IOException {
        base.checkUnchanged();
        for (AdapterSource adapter : adapters) {
            adapter.checkUnchanged();
        }
    }

    @Override
    public void close() throws IOException {
        for (AdapterSource adapter : adapters) {
            adapter.close();
        }
        base.close();
    }
}
