package org.lora4j.combine;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.stream.Stream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.config.LoraConfig;
import org.lora4j.format.AtomicFile;
import org.lora4j.format.DType;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;

/**
 * An adapter from a fine-tuned checkpoint and its base: at each layer the leading singular components of what changed, by
 * randomized SVD with a known error. Checkpoints are mapped and read layer by layer in the order of their files; finished
 * layers lie in {@code .parts} of the output folder, from which a run that was stopped goes on.
 */
public final class Extraction {
    private static final String MANIFEST = "extraction.txt";

    /** With a total, a layer gets at most this times its equal share. */
    private static final int LARGEST_SHARE = 4;

    private final MappedTensors base;
    private final MappedTensors tuned;
    private final ExtractOptions options;
    private final CheckpointChanges changes;
    private final CheckpointAbout about;
    private final PartFiles parts;

    private Extraction(
            MappedTensors base,
            MappedTensors tuned,
            ExtractOptions options,
            CheckpointChanges changes,
            CheckpointAbout about,
            PartFiles parts) {
        this.base = base;
        this.tuned = tuned;
        this.options = options;
        this.about = about;
        this.parts = parts;
        this.changes = changes;
    }

    /**
     * Extracts an adapter.
     *
     * @param base the checkpoint before
     * @param tuned the checkpoint after
     * @param out the folder of the adapter, which must hold none; it may hold the parts of the same extraction
     * @throws IllegalArgumentException listing what does not fit, before any work
     * @throws IOException if a file cannot be read or written; what is finished stays for another run
     */
    public static CombineReport extract(Path base, Path tuned, ExtractOptions options, Path out, LayerListener listener)
            throws IOException {
        long start = System.nanoTime();
        AdapterWork work = new AdapterWork(out);
        String manifest = manifest(base, tuned, options);
        Path file = out.resolve(".parts").resolve(MANIFEST);
        if (Files.exists(file) && !Files.readString(file).equals(manifest)) {
            throw new IllegalArgumentException(out.resolve(".parts")
                    + " holds parts of another extraction, of other files or options: delete it or write elsewhere");
        }
        try (MappedTensors before = TensorFiles.open(base);
                MappedTensors after = TensorFiles.open(tuned);
                NoGradGuard noGrad = new NoGradGuard()) {
            CheckpointChanges changes = new CheckpointChanges(before, after, options);
            PartFiles parts = work.parts();
            AtomicFile.write(
                    file,
                    channel -> channel.write(java.nio.ByteBuffer.wrap(manifest.getBytes(StandardCharsets.UTF_8))));
            CheckpointAbout about = CheckpointAbout.of(tuned);
            Extraction extraction = new Extraction(before, after, options, changes, about, parts);
            int resumed = extraction.decompose(listener);
            List<LayerReport> layers = extraction.write(work, base);
            List<String> notes = new ArrayList<>(extraction.changes.notes());
            if (resumed > 0) {
                notes.add(0, resumed + " layers were finished by a run before this one");
            }
            return new CombineReport(
                    "extract",
                    List.of(base.toString(), tuned.toString()),
                    List.of(),
                    options.toString(),
                    layers,
                    notes,
                    (System.nanoTime() - start) / 1e9);
        }
    }

    /** Everything the parts depend on: files with sizes and times, and options. */
    private static String manifest(Path base, Path tuned, ExtractOptions options) throws IOException {
        StringBuilder text = new StringBuilder(options.toString()).append('\n');
        for (Path checkpoint : new Path[] {base, tuned}) {
            try (Stream<Path> files = Files.walk(checkpoint, 1)) {
                for (Path file : files.filter(Files::isRegularFile).sorted().toList()) {
                    text.append(file.toAbsolutePath().normalize())
                            .append(' ')
                            .append(Files.size(file))
                            .append(' ')
                            .append(Files.getLastModifiedTime(file))
                            .append('\n');
                }
            }
        }
        return text.toString();
    }

    /** @return the number of layers that were there already */
    private int decompose(LayerListener listener) throws IOException {
        List<String> targets = changes.targets();
        int resumed = 0;
        for (int i = 0; i < targets.size(); i++) {
            if (parts.has(i)) {
                resumed++;
            } else {
                try (PointerScope scope = new PointerScope()) {
                    parts.write(i, layer(targets.get(i)));
                }
            }
            listener.layer(i + 1, targets.size(), targets.get(i));
        }
        return resumed;
    }

    private Map<String, Tensor> layer(String path) {
        Tensor before = base.tensor(path + ".weight");
        Tensor after = tuned.tensor(path + ".weight");
        int side = (int) Math.min(before.size(0), before.size(1));
        double part = options.rank() instanceof RankRule.Energy energy ? energy.part() : 0;
        int most = side;
        if (options.rank() instanceof RankRule.Fixed fixed) {
            most = Math.min(side, fixed.rank());
        } else if (options.rank() instanceof RankRule.Total total) {
            long share = Math.max(1, total.ranks() / changes.targets().size());
            most = (int) Math.min(side, LARGEST_SHARE * share);
        }
        Map<String, Tensor> tensors =
                ExtractedLayer.tensors(new Difference(before, after), about.isTransposed(), most, part, options.seed());
        if (changes.hasBias(path)) {
            Tensor bias = tuned.tensor(path + ".bias").to(ScalarType.Double);
            tensors.put(
                    ExtractedLayer.BIAS,
                    bias.sub(base.tensor(path + ".bias").to(ScalarType.Double)).to(ScalarType.Float));
        }
        return tensors;
    }

    private Map<String, ExtractedLayer> layers() throws IOException {
        Map<String, ExtractedLayer> layers = new LinkedHashMap<>();
        for (int i = 0; i < changes.targets().size(); i++) {
            String path = changes.targets().get(i);
            try (PointerScope scope = new PointerScope();
                    MappedTensors part = parts.open(i)) {
                ExtractedLayer layer = ExtractedLayer.of(part);
                if (!Double.isFinite(layer.total())) {
                    throw new IllegalArgumentException(
                            path + ".weight holds values that are not finite: check both checkpoints");
                }
                layers.put(path, layer);
            }
        }
        return layers;
    }

    private Map<String, Integer> ranks(Map<String, ExtractedLayer> layers) {
        Map<String, Integer> ranks = new LinkedHashMap<>();
        Map<String, double[]> energies = new LinkedHashMap<>();
        layers.forEach((path, layer) -> {
            if (layer.isChanged()) {
                ranks.put(path, layer.values().length);
                energies.put(path, layer.energies());
            } else if (changes.hasBias(path)) {
                changes.keepWhole(path);
            }
        });
        if (ranks.isEmpty()) {
            throw new IllegalArgumentException(
                    "no target changed between the checkpoints: there is nothing to extract; check their order");
        }
        return options.rank() instanceof RankRule.Total total ? RankBudget.share(total, energies, Map.of()) : ranks;
    }

    private List<LayerReport> write(AdapterWork work, Path basePath) throws IOException {
        Map<String, ExtractedLayer> layers = layers();
        Map<String, Integer> ranks = ranks(layers);
        ScalarType type = scalarType();
        List<LayerReport> reports = new ArrayList<>();
        for (int i = 0; i < changes.targets().size(); i++) {
            String path = changes.targets().get(i);
            Integer rank = ranks.get(path);
            if (rank != null) {
                ExtractedLayer layer = Objects.requireNonNull(layers.get(path));
                String key = AdapterSource.PREFIX + path;
                parts.add(
                        key + ".lora_A.weight",
                        options.dtype(),
                        new long[] {rank, layer.in()},
                        i,
                        part -> ExtractedLayer.a(part, rank).to(type));
                parts.add(
                        key + ".lora_B.weight",
                        options.dtype(),
                        new long[] {layer.out(), rank},
                        i,
                        part -> ExtractedLayer.b(part, rank).to(type));
                if (changes.hasBiases()) {
                    parts.add(
                            key + ".lora_B.bias",
                            options.dtype(),
                            new long[] {layer.out()},
                            i,
                            part -> ExtractedLayer.bias(part, layer.out()).to(type));
                }
                reports.add(report(path, layer, rank));
            }
        }
        for (String name : changes.wholeTensors()) {
            DType own = tuned.info(name).dtype();
            parts.add(AdapterSource.PREFIX + name, own, tuned.info(name).shape(), 0, part -> tuned.tensor(name));
        }
        work.finish(parts, config(ranks, basePath));
        return reports;
    }

    private ScalarType scalarType() {
        return switch (options.dtype()) {
            case BF16 -> ScalarType.BFloat16;
            case F16 -> ScalarType.Half;
            default -> ScalarType.Float;
        };
    }

    private LoraConfig config(Map<String, Integer> ranks, Path basePath) {
        boolean tied = about.isTied() && changes.whole().stream().anyMatch(module -> module.endsWith("embed_tokens"));
        LoraConfig shared = LoraConfig.builder()
                .baseModelNameOrPath(basePath.toString())
                .taskType(about.taskType())
                .fanInFanOut(about.isTransposed())
                .loraBias(changes.hasBiases())
                .modulesToSave(changes.whole())
                .build();
        LoraConfig config = CombinedConfig.of(
                List.of(shared),
                ranks,
                TargetNames.of(ranks.keySet(), changes.modules()),
                CombineOptions.of(CombinationType.LINEAR));
        return config.toBuilder().ensureWeightTying(tied).build();
    }

    private static LayerReport report(String path, ExtractedLayer layer, int rank) {
        double error = layer.error(rank);
        double[] values = layer.values();
        List<Double> shown = new ArrayList<>();
        for (double value : values) {
            shown.add(value);
        }
        return new LayerReport(
                path,
                layer.out(),
                layer.in(),
                List.of(),
                rank,
                1,
                Math.sqrt(Math.max(0, layer.total() - error)),
                1 - error / layer.total(),
                List.of(Math.sqrt(layer.total())),
                List.of(),
                0,
                shown);
    }
}
