package org.lora4j.merge;

import java.io.Closeable;
import java.io.DataOutputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.zip.Deflater;
import java.util.zip.ZipEntry;
import java.util.zip.ZipOutputStream;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.DType;
import org.lora4j.format.SafetensorsFile;
import org.lora4j.format.ShardedCheckpoint;
import org.lora4j.format.ShardedCheckpoint.Location;
import org.lora4j.format.TensorInfo;

/**
 * What leads from a merged checkpoint back to the original: a folder with {@code residual.json}, the headers of the original
 * files, and for every file of the result a zip with a record for each tile of each changed tensor.
 */
final class ResidualFolder implements Pipeline.Residuals, Closeable {
    static final String FILE_NAME = "residual.json";
    static final String FORMAT = "lora4j merge residual 1";

    /** Tensors that the result has no place for, in full. */
    static final String ORIGINALS = "originals.zip";

    private final MergeSession session;
    private final Path target;
    private final Path folder;
    private final Residual codec = new DeflatedResidual();
    private @Nullable ZipOutputStream zip;
    private @Nullable FileOutputStream file;
    private @Nullable Path part;
    private String entry = "";

    private ResidualFolder(MergeSession session, Path target, Path folder) {
        this.session = session;
        this.target = target;
        this.folder = folder;
    }

    /** @param resume whether a residual of the same merge may be there, from a process that died at its very end */
    static ResidualFolder create(MergeSession session, Path target, boolean resume) throws IOException {
        Path path = target.toAbsolutePath().normalize();
        Path folder = path.resolveSibling(path.getFileName() + ".part");
        if (Files.exists(path)) {
            boolean own = resume && Files.exists(path.resolve(MergeManifest.FILE_NAME));
            if (!own || !MergeManifest.read(path).recipe().equals(MergeManifest.recipe(session.description()))) {
                throw new FileAlreadyExistsException(
                        path.toString(), null, "is there already; name a new residual folder");
            }
            CheckpointMerge.delete(folder);
            Files.move(path, folder, StandardCopyOption.ATOMIC_MOVE);
        }
        Files.createDirectories(folder);
        CheckpointMerge.keepOnly(folder, name -> name.endsWith(".safetensors.zip"));
        return new ResidualFolder(session, path, folder);
    }

    private Path zipOf(OutputFile output) {
        return folder.resolve(output.name() + ".zip");
    }

    boolean has(OutputFile output) {
        return Files.exists(zipOf(output));
    }

    void begin(OutputFile output) throws IOException {
        part = folder.resolve(output.name() + ".zip.part");
        file = new FileOutputStream(part.toFile());
        zip = new ZipOutputStream(file);
        // The records are compressed already.
        zip.setLevel(Deflater.NO_COMPRESSION);
        entry = "";
    }

    @Override
    public byte[] encode(Pipeline.Task task, Matrices.Tile tile, ByteBuffer original, ByteBuffer result) {
        OutputFile.Tensor tensor = task.target();
        TensorEdit edit = tensor.edit();
        Location before = edit != null && edit.base != null ? edit.base : tensor.source();
        if (before == null) {
            throw new IllegalStateException("there is no original");
        }
        DType type = before.info().dtype();
        if (task.work() instanceof TensorMerge merge) {
            return merge.residual(tile, original, type, result, codec);
        }
        // A tensor that was replaced: its bytes are those of an adapter, and a tile counts bytes.
        byte[] bytes = new byte[original.remaining()];
        original.duplicate().get(bytes);
        return Deflated.deflate(bytes);
    }

    void add(String tensor, byte[] residual) throws IOException {
        ZipOutputStream out = zip;
        if (out == null) {
            throw new IllegalStateException("no file was begun");
        }
        if (!entry.equals(tensor)) {
            out.putNextEntry(new ZipEntry(tensor));
            entry = tensor;
        }
        DataOutputStream data = new DataOutputStream(out);
        data.writeInt(residual.length);
        data.write(residual);
    }

    void end(OutputFile output) throws IOException {
        ZipOutputStream out = zip;
        FileOutputStream stream = file;
        Path path = part;
        if (out == null || stream == null || path == null) {
            throw new IllegalStateException("no file was begun");
        }
        finish(out, stream);
        zip = null;
        Files.move(path, zipOf(output), StandardCopyOption.ATOMIC_MOVE);
        FolderSink.sync(folder);
    }

    private static void finish(ZipOutputStream out, FileOutputStream stream) throws IOException {
        out.finish();
        out.flush();
        stream.getFD().sync();
        out.close();
    }

    /** Writes everything but the records, and gives the folder its name. */
    void commit(MergeManifest manifest) throws IOException {
        BaseCheckpoint base = session.base();
        Map<String, OutputFile.Tensor> results = new LinkedHashMap<>();
        session.files()
                .forEach(output ->
                        output.tensors().forEach(t -> results.put(t.info().name(), t)));
        List<Object> files = new ArrayList<>();
        List<Location> whole = new ArrayList<>();
        for (SafetensorsFile original : base.files()) {
            String name = original.path().getFileName().toString();
            Json.write(folder.resolve(name + ".header"), OutputFile.headerOf(original));
            List<Object> tensors = new ArrayList<>();
            for (TensorInfo info : original.tensors().values()) {
                OutputFile.Tensor result = results.get(info.name());
                String how = result == null || !Arrays.equals(result.info().shape(), info.shape())
                        ? "original"
                        : result.isCopy() ? "copy" : "residual";
                if (how.equals("original")) {
                    whole.add(new Location(original, info));
                }
                tensors.add(describe(info, how, result));
            }
            Map<String, Object> entry = new LinkedHashMap<>();
            entry.put("file", name);
            entry.put("tensors", tensors);
            files.add(entry);
        }
        originals(whole);
        Map<String, Object> json = new LinkedHashMap<>();
        json.put("format", FORMAT);
        json.put("codec", codec.name());
        json.put("tile_elements", Pipeline.TILE_ELEMENTS);
        json.put("files", files);
        json.put("other_files_sha256", others());
        Json.write(folder.resolve(FILE_NAME), json);
        manifest.write(folder);
        Files.move(folder, target, StandardCopyOption.ATOMIC_MOVE);
    }

    private static Map<String, Object> describe(TensorInfo info, String how, OutputFile.@Nullable Tensor result) {
        Map<String, Object> tensor = new LinkedHashMap<>();
        tensor.put("name", info.name());
        tensor.put("dtype", info.dtype().name());
        tensor.put("shape", Arrays.stream(info.shape()).boxed().toList());
        tensor.put("begin", info.begin());
        tensor.put("how", how);
        TensorEdit edit = result == null ? null : result.edit();
        if (how.equals("residual") && edit != null) {
            boolean copied = edit.value != null
                    && edit.updates.isEmpty()
                    && edit.biases.isEmpty()
                    && edit.tokens.isEmpty()
                    && edit.value.dtype() == result.info().dtype()
                    && edit.value.dtype() == info.dtype();
            tensor.put("replaced", copied);
            Matrices matrices = edit.matrices();
            tensor.put("matrices", List.of(matrices.count(), matrices.rows(), matrices.columns()));
            List<Object> updates = new ArrayList<>();
            for (TensorEdit.Update update : Residual.isPredicted(edit) ? edit.updates : List.<TensorEdit.Update>of()) {
                Map<String, Object> entry = new LinkedHashMap<>();
                entry.put("adapter", update.adapter());
                entry.put("a", update.a());
                entry.put("b", update.b());
                entry.put("rank", update.rank());
                entry.put("scale", update.scale());
                entry.put("swapped", update.swapped());
                entry.put("experts", update.experts());
                entry.put("expert", update.expert());
                entry.put("first_row", update.firstRow());
                updates.add(entry);
            }
            tensor.put("updates", updates);
        }
        return tensor;
    }

    private void originals(List<Location> whole) throws IOException {
        if (whole.isEmpty()) {
            return;
        }
        FileOutputStream stream = new FileOutputStream(folder.resolve(ORIGINALS).toFile());
        try (ZipOutputStream out = new ZipOutputStream(stream)) {
            out.setLevel(Deflater.BEST_SPEED);
            for (Location location : whole) {
                out.putNextEntry(new ZipEntry(location.info().name()));
                byte[] chunk = new byte[1 << 20];
                long bytes = location.info().bytes();
                for (long at = 0; at < bytes; at += chunk.length) {
                    int count = (int) Math.min(chunk.length, bytes - at);
                    location.file().read(location.info().name(), at, ByteBuffer.wrap(chunk, 0, count));
                    out.write(chunk, 0, count);
                }
            }
            finish(out, stream);
        }
    }

    /** Keeps the small files a merge may change, and gives the hashes of all that are carried over. */
    private Map<String, Object> others() throws IOException {
        Map<String, Object> hashes = new LinkedHashMap<>();
        Path base = session.base().folder();
        if (base == null) {
            return hashes;
        }
        List<Path> all = new ArrayList<>(CarriedFiles.of(session.base()));
        Path index = base.resolve(ShardedCheckpoint.INDEX_FILE);
        if (Files.exists(index)) {
            all.add(index);
        }
        for (Path other : all) {
            String name = other.getFileName().toString();
            hashes.put(name, Hash.of(other));
            if (name.equals(BaseCheckpoint.CONFIG) || name.equals(ShardedCheckpoint.INDEX_FILE)) {
                Json.write(folder.resolve(name), Files.readAllBytes(other));
            }
        }
        return hashes;
    }

    /** Bytes of all files of a residual. */
    static long size(Path folder) throws IOException {
        long size = 0;
        try (var files = Files.list(folder)) {
            for (Path path : files.toList()) {
                try (FileChannel channel = FileChannel.open(path, StandardOpenOption.READ)) {
                    size += channel.size();
                }
            }
        }
        return size;
    }

    @Override
    public void close() throws IOException {
        if (zip != null) {
            zip.close();
            zip = null;
        }
    }
}
