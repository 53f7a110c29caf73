package org.lora4j.merge;

import java.io.IOException;
import java.nio.file.AccessDeniedException;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.FileSystemException;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Predicate;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.FormatException;
import org.lora4j.format.SafetensorsFile;

/**
 * Merges adapters into a checkpoint on disk. Each changed tensor is {@code round(W + sum_i s_i B_i A_i)} with one rounding,
 * to the bit what {@code LoraModel.mergeAndUnload} gives for the loaded model; everything else keeps its bytes.
 */
public final class CheckpointMerge {
    private static final String WORKING = ".merging";

    private CheckpointMerge() {}

    /**
     * Works out a merge and writes nothing.
     *
     * @throws AdapterMisfitException listing everything that does not fit
     * @throws IOException if a file is defective or cannot be read
     */
    public static MergePlan plan(MergeOptions options) throws IOException {
        try (MergeSession session = MergeSession.open(options)) {
            return MergePlan.of(session);
        }
    }

    /**
     * Writes a merged checkpoint into a new folder, which is there only when it is whole. Until then its files are in a
     * folder beside it whose name ends in {@code .merging}.
     *
     * @param output a folder that does not exist or is empty
     * @param resume whether to continue a merge of the same inputs that was interrupted; if there is none it begins
     * @return what was done, also written as {@code merge-manifest.json}
     * @throws AdapterMisfitException listing everything that does not fit; nothing is written then
     * @throws IOException if a file is defective, was changed while it was read, or cannot be written
     */
    public static MergeManifest merge(MergeOptions options, Path output, boolean resume, MergeProgress progress)
            throws IOException {
        try (MergeSession session = MergeSession.open(options)) {
            String fingerprint = session.fingerprint();
            Path target = output.toAbsolutePath().normalize();
            Path working = target.resolveSibling(target.getFileName() + WORKING);
            if (resume && Files.exists(target.resolve(MergeManifest.FILE_NAME)) && !Files.exists(working)) {
                MergeManifest done = MergeManifest.read(target);
                if (done.fingerprint().equals(fingerprint)) {
                    return done;
                }
            }
            refuseExisting(target);
            Journal journal = begin(working, fingerprint, resume);
            try {
                return merge(session, fingerprint, journal, working, target, resume, progress);
            } catch (FormatException | RuntimeException e) {
                delete(working);
                throw e;
            } catch (IOException e) {
                throw new IOException(
                        "the merge stopped: " + describe(e) + ". What is written so far is in " + working
                                + ": continue with --resume, or delete it",
                        e);
            }
        }
    }

    /**
     * Merges into the files of the checkpoint themselves. Their original bytes are kept beside them until all is done, so
     * that an interrupted merge can be taken back.
     *
     * @param resume whether to continue after an interruption: a merge that was begun is taken back and done again, and
     *     one that was finished is not repeated
     * @throws AdapterMisfitException listing everything that does not fit; nothing is written then
     * @throws IOException if a file cannot be written, or the result needs other files than the checkpoint has
     */
    public static MergeManifest mergeInPlace(MergeOptions options, boolean resume, MergeProgress progress)
            throws IOException {
        boolean takenBack = resume && rollBack(options.checkpoint());
        try (MergeSession session = MergeSession.open(options)) {
            InPlaceMerge merge = new InPlaceMerge(session, resume);
            MergeManifest done = resume && !takenBack ? merge.done() : null;
            return done == null ? merge.run(progress) : done;
        }
    }

    /**
     * Takes back an interrupted merge in place.
     *
     * @return whether there was one
     */
    public static boolean rollBack(Path checkpoint) throws IOException {
        Undo undo = new Undo(checkpoint);
        if (!undo.isThere()) {
            return false;
        }
        undo.rollBack();
        return true;
    }

    static void refuseExisting(Path target) throws IOException {
        if (!Files.exists(target)) {
            return;
        }
        if (!Files.isDirectory(target)) {
            throw new FileAlreadyExistsException(target.toString(), null, "is a file; name a new folder");
        }
        try (Stream<Path> files = Files.list(target)) {
            if (files.findAny().isPresent()) {
                throw new FileAlreadyExistsException(
                        target.toString(), null, "holds files; name a new or empty folder");
            }
        }
    }

    private static Journal begin(Path working, String fingerprint, boolean resume) throws IOException {
        boolean begun = Files.exists(working.resolve(Journal.FILE_NAME));
        if (begun && resume) {
            Journal journal = Journal.open(working, fingerprint);
            keepOnly(working, name -> name.equals(Journal.FILE_NAME) || journal.finished(name) != null);
            return journal;
        }
        if (begun) {
            throw new FileAlreadyExistsException(
                    working.toString(), null, "is an interrupted merge; continue it with --resume, or delete it");
        }
        try {
            Files.createDirectories(working);
            return Journal.create(working, fingerprint);
        } catch (AccessDeniedException e) {
            throw new IOException(working + ": cannot be written; check the permissions of the folder it is in", e);
        } catch (FileSystemException e) {
            throw new IOException(working + ": cannot be written: " + describe(e), e);
        }
    }

    /** Deletes what an interrupted process left in a folder. */
    static void keepOnly(Path folder, Predicate<String> names) throws IOException {
        List<Path> others;
        try (Stream<Path> files = Files.list(folder)) {
            others = files.filter(file -> !names.test(file.getFileName().toString()))
                    .toList();
        }
        for (Path other : others) {
            Files.delete(other);
        }
    }

    static String describe(IOException e) {
        String reason = e instanceof FileSystemException named ? named.getReason() : null;
        if (reason != null || e instanceof NoSuchFileException || e instanceof AccessDeniedException) {
            String what = e instanceof NoSuchFileException
                    ? "there is no such file"
                    : e instanceof AccessDeniedException ? "access is denied" : reason;
            return ((FileSystemException) e).getFile() + ": " + (reason == null ? what : reason);
        }
        return e.getMessage() == null ? e.toString() : e.getMessage();
    }

    private static MergeManifest merge(
            MergeSession session,
            String fingerprint,
            Journal journal,
            Path working,
            Path target,
            boolean resume,
            MergeProgress progress)
            throws IOException {
        Path residual = session.options().residual();
        ResidualFolder residuals = residual == null ? null : ResidualFolder.create(session, residual, resume);
        try (FolderSink sink = new FolderSink(working, journal, residuals)) {
            Pipeline pipeline = new Pipeline(sink, residuals, progress);
            long missing = 0;
            for (OutputFile file : session.files()) {
                boolean done = journal.finished(file.name()) != null
                        && Files.exists(working.resolve(file.name()))
                        && Files.size(working.resolve(file.name())) == file.bytes()
                        && (residuals == null || residuals.has(file));
                if (done) {
                    pipeline.skip(file.dataBytes());
                } else {
                    List<Pipeline.Task> tasks = new ArrayList<>();
                    for (OutputFile.Tensor tensor : file.tensors()) {
                        tasks.add(session.task(tensor, residuals != null));
                    }
                    pipeline.add(file, tasks);
                    missing += file.bytes();
                }
            }
            checkSpace(working, missing);
            pipeline.run();
        }
        session.checkUnchanged();
        Map<String, String> others = CarriedFiles.write(session, working);
        MergeManifest manifest = MergeManifest.of(
                session, true, fingerprint, inputs(session, journal), outputs(session, journal), others);
        if (residuals != null) {
            residuals.commit(manifest);
        }
        manifest.write(working);
        Files.deleteIfExists(target);
        journal.delete();
        Files.move(working, target, StandardCopyOption.ATOMIC_MOVE);
        Path parent = target.getParent();
        if (parent != null) {
            FolderSink.sync(parent);
        }
        return manifest;
    }

    private static void checkSpace(Path folder, long needed) throws IOException {
        long there = Files.getFileStore(folder).getUsableSpace();
        if (there < needed) {
            throw new IOException("no space left: " + folder + " has room for " + Numbers.size(there) + " and the merge"
                    + " still writes " + Numbers.size(needed) + "; free some");
        }
    }

    /** The hashes of the checkpoint's files: of every tensor where it was read. */
    static List<FileRecord> inputs(MergeSession session, Journal journal) throws IOException {
        Map<String, String> hashes = new HashMap<>();
        for (OutputFile file : session.files()) {
            Journal.Finished finished = journal.finished(file.name());
            if (finished != null) {
                hashes.putAll(finished.inputs());
            }
        }
        return inputs(session.base(), hashes);
    }

    static List<FileRecord> inputs(BaseCheckpoint base, Map<String, String> hashes) throws IOException {
        List<FileRecord> records = new ArrayList<>();
        for (SafetensorsFile file : base.files()) {
            Map<String, String> tensors = new LinkedHashMap<>();
            for (String name : file.tensors().keySet()) {
                String hash = hashes.get(name);
                if (hash != null) {
                    tensors.put(name, hash);
                }
            }
            long bytes = Files.size(file.path());
            String header = Hash.of(OutputFile.headerOf(file));
            records.add(new FileRecord(file.path().getFileName().toString(), bytes, header, tensors));
        }
        return records;
    }

    private static List<FileRecord> outputs(MergeSession session, Journal journal) {
        List<FileRecord> records = new ArrayList<>();
        for (OutputFile file : session.files()) {
            Journal.Finished finished = journal.finished(file.name());
            if (finished == null) {
                throw new IllegalStateException(file.name() + " was not written");
            }
            records.add(finished.output());
        }
        return records;
    }

    /** Deletes a folder and what is in it. */
    static void delete(@Nullable Path folder) throws IOException {
        if (folder == null || !Files.exists(folder)) {
            return;
        }
        List<Path> deepestFirst;
        try (Stream<Path> all = Files.walk(folder)) {
            deepestFirst = all.sorted(Comparator.reverseOrder()).toList();
        }
        for (Path path : deepestFirst) {
            Files.delete(path);
        }
    }
}
