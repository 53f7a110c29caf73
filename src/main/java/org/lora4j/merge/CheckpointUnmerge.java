package org.lora4j.merge;

import java.io.DataInputStream;
import java.io.EOFException;
import java.io.IOException;
import java.io.InputStream;
import java.lang.ref.Reference;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.zip.ZipEntry;
import java.util.zip.ZipException;
import java.util.zip.ZipFile;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.DType;
import org.lora4j.format.FormatException;
import org.lora4j.format.ShardedCheckpoint;
import org.lora4j.format.ShardedCheckpoint.Location;
import org.lora4j.format.TensorInfo;
import org.lora4j.merge.Matrices.Tile;

/** Makes the original checkpoint again, to the bit, from a merged one, its adapters and the residual of the merge. */
public final class CheckpointUnmerge {
    private final ResidualDescription residual;
    private final ShardedCheckpoint merged;
    private final List<AdapterSource> adapters;
    private final Map<String, ZipFile> zips = new HashMap<>();

    private CheckpointUnmerge(ResidualDescription residual, ShardedCheckpoint merged, List<AdapterSource> adapters) {
        this.residual = residual;
        this.merged = merged;
        this.adapters = adapters;
    }

    /**
     * Writes the original checkpoint into a new folder, which is there only when every byte was found to be right.
     *
     * @param checkpoint the merged one
     * @param residualFolder what the merge wrote as its residual
     * @param adapterFolders the adapters in their order, if they are not where they were; none for where they were
     * @throws FormatException if the checkpoint, an adapter or the residual is not that of the merge, or the result would
     *     not be the original
     */
    public static void unmerge(
            Path checkpoint, Path residualFolder, List<Path> adapterFolders, Path output, MergeProgress progress)
            throws IOException {
        Undo.refuse(checkpoint);
        ResidualDescription residual = ResidualDescription.read(residualFolder);
        Path target = output.toAbsolutePath().normalize();
        CheckpointMerge.refuseExisting(target);
        List<AdapterSource> adapters = new ArrayList<>();
        try (ShardedCheckpoint merged = ShardedCheckpoint.open(checkpoint)) {
            residual.openAdapters(adapterFolders, adapters);
            Path working = target.resolveSibling(target.getFileName() + ".unmerging");
            CheckpointMerge.delete(working);
            Files.createDirectories(working);
            try {
                new CheckpointUnmerge(residual, merged, adapters).run(checkpoint, working, progress);
                Files.deleteIfExists(target);
                Files.move(working, target, StandardCopyOption.ATOMIC_MOVE);
            } catch (IOException | RuntimeException e) {
                CheckpointMerge.delete(working);
                throw e;
            }
        } finally {
            for (AdapterSource adapter : adapters) {
                adapter.close();
            }
        }
    }

    private void run(Path checkpoint, Path working, MergeProgress progress) throws IOException {
        Journal journal = Journal.create(working, residual.manifest().fingerprint());
        try (FolderSink sink = new FolderSink(working, journal, null)) {
            Pipeline pipeline = new Pipeline(sink, null, progress);
            for (ResidualDescription.File file : residual.files()) {
                List<Pipeline.Task> tasks = new ArrayList<>();
                List<OutputFile.Tensor> tensors = new ArrayList<>();
                for (ResidualDescription.Entry entry : file.tensors()) {
                    Location location = merged.tensors().get(entry.info().name());
                    OutputFile.Tensor tensor = new OutputFile.Tensor(entry.info(), location, null);
                    tensors.add(tensor);
                    tasks.add(task(entry, tensor, location));
                }
                pipeline.add(new OutputFile(file.name(), file.header(), tensors), tasks);
            }
            pipeline.run();
        } finally {
            for (ZipFile zip : zips.values()) {
                zip.close();
            }
        }
        compare(journal);
        journal.delete();
        others(checkpoint, working);
    }

    private Pipeline.Task task(ResidualDescription.Entry entry, OutputFile.Tensor tensor, @Nullable Location location)
            throws IOException {
        String name = entry.info().name();
        if (entry.how().equals("original")) {
            ZipFile zip = zip(ResidualFolder.ORIGINALS);
            InputStream in = open(zip, name);
            Bytes bytes = (from, target) -> {
                try {
                    byte[] chunk = in.readNBytes(target.remaining());
                    if (chunk.length < target.remaining()) {
                        throw damaged(name);
                    }
                    target.put(chunk);
                } catch (ZipException e) {
                    throw new FormatException(damaged(name).getMessage(), e);
                }
            };
            return new Pipeline.Task(tensor, new TensorCopy(bytes, entry.info().bytes(), null), false, null);
        }
        if (location == null
                || !java.util.Arrays.equals(
                        location.info().shape(), entry.info().shape())) {
            throw new FormatException("tensor \"" + name + "\" is not in the merged checkpoint as the merge left it");
        }
        if (entry.how().equals("copy")) {
            if (!location.info().dtype().equals(entry.info().dtype())) {
                throw new FormatException("tensor \"" + name + "\" has another type than the merge left it");
            }
            return new Pipeline.Task(tensor, TensorCopy.of(location), true, null);
        }
        String zipped = residual.outputOf(name) + ".zip";
        DataInputStream records = new DataInputStream(open(zip(zipped), name));
        return new Pipeline.Task(tensor, new Restored(entry, location, records), true, null);
    }

    private ZipFile zip(String name) throws IOException {
        ZipFile zip = zips.get(name);
        if (zip == null) {
            Path path = residual.folder().resolve(name);
            try {
                zip = new ZipFile(path.toFile());
            } catch (ZipException e) {
                throw new FormatException(path + ": is damaged (" + e.getMessage() + "); get the residual again", e);
            }
            zips.put(name, zip);
        }
        return zip;
    }

    private InputStream open(ZipFile zip, String name) throws IOException {
        ZipEntry entry = zip.getEntry(name);
        if (entry == null) {
            throw damaged(name);
        }
        return zip.getInputStream(entry);
    }

    private FormatException damaged(String tensor) {
        return new FormatException(residual.folder() + ": the residual of \"" + tensor + "\" is damaged or missing");
    }

    /** Every tensor written must have the hash of the original. */
    private void compare(Journal journal) throws IOException {
        List<String> other = new ArrayList<>();
        for (FileRecord record : residual.manifest().inputs()) {
            Journal.Finished finished = journal.finished(record.name());
            if (finished == null || !finished.output().header().equals(record.header())) {
                throw new FormatException(residual.folder().resolve(record.name() + ".header")
                        + ": is not the header of the original; get the residual again");
            }
            record.tensors().forEach((name, hash) -> {
                if (!hash.equals(finished.output().tensors().get(name))) {
                    other.add(name);
                }
            });
        }
        if (!other.isEmpty()) {
            throw new FormatException("the result is not the original in " + other.size() + " tensors, such as \""
                    + other.get(0) + "\": the merged checkpoint was changed after the merge, or this"
                    + " machine computes differently; nothing was written");
        }
    }

    private void others(Path checkpoint, Path working) throws IOException {
        for (Map.Entry<String, String> other : residual.others().entrySet()) {
            Path kept = residual.folder().resolve(other.getKey());
            Path from = Files.exists(kept) ? kept : checkpoint.resolve(other.getKey());
            if (!Files.exists(from) || !Hash.of(from).equals(other.getValue())) {
                throw new FormatException(from + ": is missing or was changed since the merge; put the original there");
            }
            Files.copy(from, working.resolve(other.getKey()));
        }
    }

    /** A tensor that the merge changed. */
    private final class Restored implements TensorWork {
        private final ResidualDescription.Entry entry;
        private final Location location;
        private final DataInputStream records;
        private final Residual codec = new DeflatedResidual();
        private final Factors factors;
        private final List<Tile> tiles;

        Restored(ResidualDescription.Entry entry, Location location, DataInputStream records) {
            this.entry = entry;
            this.location = location;
            this.records = records;
            this.factors = new Factors(adapters);
            this.tiles = entry.replaced()
                    ? new Matrices(1, 1, entry.info().bytes()).tiles(Pipeline.TILE_BYTES)
                    : entry.matrices().tiles(residual.tileElements());
        }

        @Override
        public List<Tile> tiles() {
            return tiles;
        }

        private int size(DType dtype, Tile tile) {
            return (int) tile.elements() * (entry.replaced() ? 1 : Numbers.bytes(dtype));
        }

        @Override
        public int inBytes(Tile tile) {
            return size(location.info().dtype(), tile);
        }

        @Override
        public int outBytes(Tile tile) {
            return size(entry.info().dtype(), tile);
        }

        @Override
        public void read(Tile tile, ByteBuffer in) throws IOException {
            long size = entry.replaced() ? 1 : Numbers.bytes(location.info().dtype());
            location.file().read(location.info().name(), tile.first() * size, in);
        }

        @Override
        public boolean isCopy() {
            return false;
        }

        @Override
        public boolean countsBytes() {
            return entry.replaced();
        }

        @Override
        public void start() throws IOException {
            try (PointerScope scope = new PointerScope()) {
                factors.load(entry.updates());
            }
        }

        @Override
        public ByteBuffer compute(Tile tile, ByteBuffer in, ByteBuffer out) throws IOException {
            byte[] record = record(tile);
            try (PointerScope scope = new PointerScope();
                    NoGradGuard noGrad = new NoGradGuard()) {
                out.clear().limit(outBytes(tile));
                if (entry.replaced()) {
                    out.put(Deflated.inflate(record, outBytes(tile))).flip();
                    return out;
                }
                Tensor after = Blobs.matrix(in, location.info().dtype(), tile.rows(), tile.columns());
                Tensor original = Blobs.matrix(out, entry.info().dtype(), tile.rows(), tile.columns());
                codec.decode(record, after, factors.lowRanks(entry.updates(), tile), original);
                Reference.reachabilityFence(in);
                out.position(0).limit(outBytes(tile));
                return out;
            } catch (IllegalArgumentException e) {
                throw new FormatException(damaged(entry.info().name()).getMessage(), e);
            }
        }

        private byte[] record(Tile tile) throws IOException {
            try {
                int length = records.readInt();
                if (length < 0 || length > outBytes(tile) + (outBytes(tile) >> 3) + 1024) {
                    throw damaged(entry.info().name());
                }
                byte[] record = new byte[length];
                records.readFully(record);
                return record;
            } catch (EOFException | ZipException e) {
                throw new FormatException(damaged(entry.info().name()).getMessage(), e);
            }
        }

        @Override
        public void finish() {
            factors.close();
        }
    }

    /** What the fields of a tensor's place in a file say, for {@link ResidualDescription}. */
    static TensorInfo info(String name, DType dtype, long[] shape, long begin) throws FormatException {
        long bytes;
        try {
            long elements = 1;
            for (long size : shape) {
                elements = Math.multiplyExact(elements, size);
            }
            bytes = Math.multiplyExact(elements, (long) dtype.bits()) / 8;
            return new TensorInfo(name, dtype, shape, begin, Math.addExact(begin, bytes));
        } catch (ArithmeticException e) {
            throw new FormatException("tensor \"" + name + "\" of the residual has an impossible size", e);
        }
    }
}
