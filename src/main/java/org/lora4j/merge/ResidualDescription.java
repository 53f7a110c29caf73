package org.lora4j.merge;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.DType;
import org.lora4j.format.FormatException;
import org.lora4j.format.StrictJson;
import org.lora4j.format.TensorInfo;

/** A {@link ResidualFolder} that was read: how each tensor of the original comes about. */
record ResidualDescription(
        Path folder, MergeManifest manifest, int tileElements, List<File> files, Map<String, String> others) {
    /** A file of the original. */
    record File(String name, byte[] header, List<Entry> tensors) {}

    /**
     * A tensor of the original.
     *
     * @param how {@code copy} of the merged one, {@code residual} to it, or kept whole as {@code original}
     * @param replaced whether the merge put other bytes in its place, so that the residual holds all of its own
     */
    record Entry(TensorInfo info, String how, boolean replaced, Matrices matrices, List<TensorEdit.Update> updates) {}

    static ResidualDescription read(Path folder) throws IOException {
        Path path = folder.resolve(ResidualFolder.FILE_NAME);
        if (!Files.exists(path)) {
            throw new NoSuchFileException(
                    path.toString(), null, "there is no residual; a merge writes one with --residual");
        }
        Map<String, @Nullable Object> json = StrictJson.readObject(path, 256 << 20);
        if (!ResidualFolder.FORMAT.equals(json.get("format"))
                || !(json.get("tile_elements") instanceof Long tile)
                || tile < 1
                || tile > Pipeline.TILE_ELEMENTS) {
            throw new FormatException(path + ": is no residual of this version of lora4j");
        }
        String codec = new DeflatedResidual().name();
        if (!codec.equals(json.get("codec"))) {
            throw new FormatException(path + ": was written with " + json.get("codec") + " and this is " + codec
                    + ": choose the same operations with -Dlora4j.ops");
        }
        List<File> files = new ArrayList<>();
        for (Object entry : Json.list(json.get("files"), "files", path.toString())) {
            if (!(entry instanceof Map<?, ?> map && map.get("file") instanceof String name) || name.contains("/")) {
                throw malformed(path);
            }
            List<Entry> tensors = new ArrayList<>();
            for (Object tensor : Json.list(map.get("tensors"), "tensors", path.toString())) {
                tensors.add(entry(tensor, path));
            }
            files.add(new File(name, Files.readAllBytes(folder.resolve(name + ".header")), tensors));
        }
        Map<String, String> others = Json.strings(json.get("other_files_sha256"), path.toString());
        return new ResidualDescription(folder, MergeManifest.read(folder), tile.intValue(), files, others);
    }

    private static FormatException malformed(Path path) {
        return new FormatException(path + ": is not what a merge writes; do not edit it");
    }

    private static Entry entry(Object json, Path path) throws IOException {
        if (!(json instanceof Map<?, ?> map)
                || !(map.get("name") instanceof String name)
                || !(map.get("dtype") instanceof String dtype)
                || !(map.get("begin") instanceof Long begin)
                || !(map.get("how") instanceof String how)) {
            throw malformed(path);
        }
        TensorInfo info;
        try {
            info = CheckpointUnmerge.info(name, DType.valueOf(dtype), longs(map.get("shape"), path), begin);
        } catch (IllegalArgumentException e) {
            throw new FormatException(path + ": knows a type " + dtype + "; do not edit it", e);
        }
        Matrices matrices = Matrices.of(info.shape(), false);
        List<TensorEdit.Update> updates = new ArrayList<>();
        if (map.get("matrices") instanceof List<?>) {
            long[] sizes = longs(map.get("matrices"), path);
            long elements = Numbers.count(info.shape());
            if (sizes.length != 3 || sizes[0] < 0 || sizes[1] < 0 || Numbers.count(sizes) != elements) {
                throw malformed(path);
            }
            matrices = new Matrices(sizes[0], sizes[1], sizes[2]);
            for (Object update : Json.list(map.get("updates"), "updates", path.toString())) {
                updates.add(update(update, path));
            }
        }
        return new Entry(info, how, Boolean.TRUE.equals(map.get("replaced")), matrices, updates);
    }

    private static TensorEdit.Update update(Object json, Path path) throws IOException {
        if (json instanceof Map<?, ?> map
                && map.get("adapter") instanceof Long adapter
                && map.get("a") instanceof String a
                && map.get("b") instanceof String b
                && map.get("rank") instanceof Long rank
                && map.get("scale") instanceof Number scale
                && map.get("swapped") instanceof Boolean swapped
                && map.get("experts") instanceof Long experts
                && map.get("expert") instanceof Long expert
                && map.get("first_row") instanceof Long row) {
            return new TensorEdit.Update(
                    adapter.intValue(),
                    a,
                    b,
                    null,
                    rank.intValue(),
                    scale.doubleValue(),
                    swapped,
                    experts.intValue(),
                    expert.intValue(),
                    row);
        }
        throw malformed(path);
    }

    private static long[] longs(@Nullable Object json, Path path) throws IOException {
        List<?> list = Json.list(json, "shape", path.toString());
        long[] longs = new long[list.size()];
        for (int i = 0; i < longs.length; i++) {
            if (!(list.get(i) instanceof Long size) || size < 0) {
                throw malformed(path);
            }
            longs[i] = size;
        }
        return longs;
    }

    /** The file of the merged checkpoint that a tensor is in. */
    String outputOf(String tensor) throws FormatException {
        for (FileRecord record : manifest.outputs()) {
            if (record.tensors().containsKey(tensor)) {
                return record.name();
            }
        }
        throw new FormatException(folder + ": its manifest has no tensor \"" + tensor + "\"; do not edit it");
    }

    /** Opens the adapters of the merge, which must be the ones they were. */
    void openAdapters(List<Path> elsewhere, List<AdapterSource> opened) throws IOException {
        List<?> list = Json.list(manifest.json().get("adapters"), "adapters", folder.toString());
        if (!elsewhere.isEmpty() && elsewhere.size() != list.size()) {
            throw new IllegalArgumentException("the merge had " + list.size() + " adapters, but " + elsewhere.size()
                    + " are named: name all of them, in the same order");
        }
        for (int i = 0; i < list.size(); i++) {
            if (!(list.get(i) instanceof Map<?, ?> map
                    && map.get("folder") instanceof String path
                    && map.get("weight") instanceof Number weight)) {
                throw malformed(folder.resolve(MergeManifest.FILE_NAME));
            }
            Path from = elsewhere.isEmpty() ? Path.of(path) : elsewhere.get(i);
            AdapterSource adapter = AdapterSource.open(i, new WeightedAdapter(from, weight.doubleValue()));
            opened.add(adapter);
            if (!adapter.hashes().equals(Json.strings(map.get("files_sha256"), folder.toString()))) {
                throw new FormatException(from + ": is not the adapter that was merged, or was changed since");
            }
        }
    }
}
