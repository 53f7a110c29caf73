package org.lora4j.merge;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.TreeMap;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.FormatException;
import org.lora4j.format.ShardedCheckpoint.Location;

/** Overwrites the changed tensors of a checkpoint and nothing else. */
final class InPlaceMerge {
    private final MergeSession session;
    private final boolean resume;

    InPlaceMerge(MergeSession session, boolean resume) {
        this.session = session;
        this.resume = resume;
    }

    /**
     * The manifest of this very merge if the checkpoint is its result already, or null: a process that died after its work
     * was done must not have it done twice.
     */
    @Nullable
    MergeManifest done() throws IOException {
        Path checkpoint = session.base().path();
        Path home = home(checkpoint);
        if (!Files.exists(home.resolve(MergeManifest.FILE_NAME))) {
            return null;
        }
        MergeManifest manifest = MergeManifest.read(home);
        boolean same = manifest.recipe().equals(MergeManifest.recipe(session.description()))
                && Verification.of(home, manifest, MergeProgress.NONE).isEqual();
        if (same) {
            new Undo(checkpoint).forget();
        }
        return same ? manifest : null;
    }

    MergeManifest run(MergeProgress progress) throws IOException {
        refuse();
        String fingerprint = session.fingerprint();
        Path checkpoint = session.base().path();
        Path home = home(checkpoint);
        Path residual = session.options().residual();
        ResidualFolder residuals = residual == null ? null : ResidualFolder.create(session, residual, resume);
        List<Location> changed = new ArrayList<>();
        long bytes = 0;
        for (TensorEdit edit : session.edits().values()) {
            changed.add(Objects.requireNonNull(edit.base));
            bytes += edit.base.info().bytes();
        }
        checkSpace(home, bytes);
        Undo undo = new Undo(checkpoint);
        Map<String, String> inputs = new HashMap<>();
        List<FileRecord> outputs = new ArrayList<>();
        boolean begun = false;
        try (Sink sink = new Sink(home, residuals, inputs, outputs)) {
            undo.record(changed);
            begun = true;
            Pipeline pipeline = new Pipeline(sink, residuals, progress);
            for (OutputFile file : session.files()) {
                List<Pipeline.Task> tasks = new ArrayList<>();
                for (OutputFile.Tensor tensor : file.tensors()) {
                    if (tensor.edit() != null) {
                        tasks.add(session.task(tensor, residuals != null));
                    }
                }
                if (!tasks.isEmpty()) {
                    pipeline.add(file, tasks);
                }
            }
            pipeline.run();
        } catch (FormatException | RuntimeException e) {
            takeBack(undo, begun);
            throw e;
        } catch (IOException e) {
            takeBack(undo, begun);
            throw new IOException(
                    "the merge stopped and the checkpoint is as it was: " + CheckpointMerge.describe(e), e);
        }
        MergeManifest manifest = MergeManifest.of(
                session, false, fingerprint, CheckpointMerge.inputs(session.base(), inputs), outputs, new TreeMap<>());
        if (residuals != null) {
            residuals.commit(manifest);
        }
        manifest.write(home);
        undo.forget();
        return manifest;
    }

    private static void takeBack(Undo undo, boolean begun) throws IOException {
        if (begun) {
            undo.rollBack();
        } else {
            undo.forget();
        }
    }

    private static Path home(Path checkpoint) {
        Path parent = checkpoint.toAbsolutePath().getParent();
        return Files.isDirectory(checkpoint) || parent == null ? checkpoint : parent;
    }

    private void refuse() throws IOException {
        List<String> reasons = new ArrayList<>();
        if (session.options().maxShardBytes() > 0) {
            reasons.add("the result would have other shards");
        }
        for (OutputFile file : session.files()) {
            for (OutputFile.Tensor tensor : file.tensors()) {
                Location source = tensor.source();
                TensorEdit edit = tensor.edit();
                Location stored = edit == null ? source : edit.base;
                if (stored == null) {
                    reasons.add(tensor.info().name() + " would be new");
                } else if (!stored.info().equals(tensor.info())) {
                    reasons.add(tensor.info().name() + " would have another type, size or place");
                }
            }
        }
        if (!session.matching().configChanges().isEmpty()) {
            reasons.add("config.json would change: " + session.matching().configChanges());
        }
        session.base().files().forEach(file -> {
            if (Files.isSymbolicLink(file.path())) {
                reasons.add(file.path() + " is a link, and what it leads to would change");
            } else if (!Files.isWritable(file.path())) {
                reasons.add(file.path() + " cannot be written");
            }
        });
        if (!reasons.isEmpty()) {
            throw new FormatException(session.base().path()
                    + ": the merge cannot be done in place; write it to a new folder. "
                    + String.join("; ", reasons.subList(0, Math.min(10, reasons.size()))));
        }
    }

    private static void checkSpace(Path folder, long needed) throws IOException {
        long there = Files.getFileStore(folder).getUsableSpace();
        if (there < needed) {
            throw new IOException("no space left: " + folder + " has room for " + Numbers.size(there)
                    + " and the original of what changes needs " + Numbers.size(needed) + " until the merge is done");
        }
    }

    /** Writes into the files that are there. */
    private static final class Sink implements Pipeline.Sink, AutoCloseable {
        private final Path home;
        private final @Nullable ResidualFolder residuals;
        private final Map<String, String> allInputs;
        private final List<FileRecord> records;
        private @Nullable FileChannel channel;

        Sink(Path home, @Nullable ResidualFolder residuals, Map<String, String> inputs, List<FileRecord> records) {
            this.home = home;
            this.residuals = residuals;
            this.allInputs = inputs;
            this.records = records;
        }

        @Override
        public void begin(OutputFile file) throws IOException {
            channel = FileChannel.open(home.resolve(file.name()), StandardOpenOption.WRITE);
            if (residuals != null) {
                residuals.begin(file);
            }
        }

        @Override
        public void write(
                OutputFile.Tensor tensor,
                long position,
                ByteBuffer result,
                @Nullable ByteBuffer original,
                byte @Nullable [] residual)
                throws IOException {
            FolderSink.write(Objects.requireNonNull(channel), result, position);
            if (residuals != null && residual != null) {
                residuals.add(tensor.info().name(), residual);
            }
        }

        @Override
        public void end(OutputFile file, Map<String, String> inputs, Map<String, String> outputs) throws IOException {
            if (residuals != null) {
                residuals.end(file);
            }
            FileChannel open = Objects.requireNonNull(channel);
            open.force(false);
            open.close();
            channel = null;
            allInputs.putAll(inputs);
            records.add(
                    new FileRecord(file.name(), file.bytes(), Hash.of(file.header()), new LinkedHashMap<>(outputs)));
        }

        @Override
        public void close() throws IOException {
            if (channel != null) {
                channel.close();
            }
            if (residuals != null) {
                residuals.close();
            }
        }
    }
}
