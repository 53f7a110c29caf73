package org.lora4j.combine;

import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.ModuleSelector;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;
import org.lora4j.ops.Tensors;

/**
 * Adapters in PEFT's folders combined into another one, without a model. Files are mapped and results written layer by
 * layer, so that memory holds one layer.
 */
public final class FolderCombination implements AutoCloseable {
    private final List<AdapterSource> sources = new ArrayList<>();
    private final List<Double> weights;
    private final CombineOptions options;
    private final @Nullable MappedTensors base;
    private final Map<String, String> modules = new TreeMap<>();

    private FolderCombination(List<Path> folders, List<Double> weights, CombineOptions options, @Nullable Path base)
            throws IOException {
        this.weights = weights;
        this.options = options;
        try {
            for (Path folder : folders) {
                sources.add(AdapterSource.open(folder));
            }
            this.base = base == null ? null : TensorFiles.open(base);
        } catch (Throwable failure) {
            sources.forEach(AdapterSource::close);
            throw failure;
        }
    }

    /**
     * Combines adapters.
     *
     * @param folders of the adapters, each once
     * @param weights one for each
     * @param base a checkpoint of their base model, which DoRA and modules kept whole need; or null
     * @param out the folder of the new adapter, which must hold none
     * @throws IllegalArgumentException if something does not fit; nothing is written then
     * @throws IOException if a file cannot be read or written
     */
    public static CombineReport combine(
            List<Path> folders,
            List<Double> weights,
            CombineOptions options,
            @Nullable Path base,
            Path out,
            LayerListener listener)
            throws IOException {
        long start = System.nanoTime();
        List<String> names = folders.stream()
                .map(folder -> folder.toAbsolutePath().normalize().toString())
                .toList();
        CombineChecks.weights(names, weights, options);
        AdapterWork work = new AdapterWork(out);
        try (FolderCombination combination = new FolderCombination(folders, weights, options, base)) {
            combination.check(names);
            List<LayerReport> layers = combination.write(work, listener);
            return new CombineReport(
                    "combine",
                    folders.stream().map(Path::toString).toList(),
                    weights,
                    options.toString(),
                    layers,
                    List.of(),
                    (System.nanoTime() - start) / 1e9);
        }
    }

    private List<LoraConfig> configs() {
        return sources.stream().map(AdapterSource::config).toList();
    }

    private void check(List<String> names) {
        CombinedConfig.check(names, configs(), options);
        if (base == null) {
            checkBases();
        }
        Map<String, Set<String>> targets = new LinkedHashMap<>();
        for (AdapterSource source : sources) {
            targets.put(source.name(), source.layers().keySet());
        }
        CombineChecks.targets(targets, options);
        for (AdapterSource source : sources) {
            source.layers().forEach((path, layer) -> {
                modules.put(path, AdapterSource.configPath(path));
                for (AdapterSource other : sources) {
                    AdapterSource.Layer same = other.layers().get(path);
                    if (same != null && same.isEmbedding() != layer.isEmbedding()) {
                        throw new IllegalArgumentException(path + " is an embedding in one of " + source.name()
                                + " and " + other.name() + " only: combine adapters of one base");
                    }
                }
            });
        }
    }

    private void checkBases() {
        Set<String> bases = new TreeSet<>();
        for (LoraConfig config : configs()) {
            if (config.baseModelNameOrPath() != null
                    && !config.baseModelNameOrPath().isEmpty()) {
                bases.add(config.baseModelNameOrPath());
            }
        }
        if (bases.size() > 1) {
            throw new IllegalArgumentException("the adapters are of different bases, " + bases
                    + ": combine adapters of one, or give the base if these are names of the same");
        }
    }

    private LayerInput input(String path) {
        List<LayerInput.Member> members = new ArrayList<>();
        List<Double> here = options.weights(path, weights);
        for (int i = 0; i < sources.size(); i++) {
            if (sources.get(i).layers().containsKey(path)) {
                members.add(sources.get(i).member(path, i, here.get(i)));
            }
        }
        return new LayerInput(path, members, base == null ? null : () -> baseMatrix(path));
    }

    private Tensor baseMatrix(String path) {
        AdapterSource owner = owner(path);
        Tensor weight = Objects.requireNonNull(base).tensor(path.replace(".base_layer", "") + ".weight");
        boolean transposed = Objects.requireNonNull(owner.layers().get(path)).isEmbedding()
                || owner.config().fanInFanOut();
        Tensor matrix = transposed ? weight.t() : weight.flatten(1, -1);
        LayerInput.Member member = owner.member(path, 0, 1);
        if (matrix.size(0) != member.b().size(0)
                || matrix.size(1) != member.matrixA().size(1)) {
            throw new IllegalArgumentException("the base has " + path + ".weight of shape " + Tensors.describe(weight)
                    + ", which does not fit A " + Tensors.describe(member.a()) + " and B "
                    + Tensors.describe(member.b()) + ": give the base of the adapters");
        }
        return matrix;
    }

    private AdapterSource owner(String path) {
        return sources.stream()
                .filter(source -> source.layers().containsKey(path))
                .findFirst()
                .orElseThrow();
    }

    private ScalarType type(String path) {
        AdapterSource owner = owner(path);
        return Tensors.type(owner.tensors()
                .tensor(Objects.requireNonNull(owner.layers().get(path)).a()));
    }

    private List<LayerReport> write(AdapterWork work, LayerListener listener) throws IOException {
        CombinedLayers layers = new CombinedLayers(modules, this::input, options);
        layers.check();
        List<Integer> whole = new ArrayList<>();
        WholeTensors others = new WholeTensors(sources, weights, base);
        boolean withBias = CombinedConfig.hasBias(configs(), options);
        boolean withMagnitude = CombinedConfig.hasMagnitude(configs(), options);
        PartFiles parts = work.parts();
        List<LayerReport> reports = new ArrayList<>();
        try {
            Map<String, Integer> ranks =
                    layers.<IOException>forEach(this::type, withBias, withMagnitude, (path, result) -> {
                        parts.write(reports.size(), named(path, result));
                        reports.add(result.report());
                        listener.layer(reports.size(), modules.size(), path);
                    });
            try (PointerScope scope = new PointerScope()) {
                Map<String, Tensor> sums = others.sums();
                if (!sums.isEmpty()) {
                    parts.write(reports.size(), sums);
                    whole.add(reports.size());
                }
            }
            for (int i = 0; i < reports.size() + whole.size(); i++) {
                parts.addAll(i, Map.of());
            }
            LoraConfig config = CombinedConfig.of(configs(), ranks, targets(ranks.keySet()), options);
            work.finish(parts, config);
            return reports.stream()
                    .map(report -> report.withScale(config.scale(AdapterSource.configPath(report.path()))))
                    .toList();
        } catch (Throwable failure) {
            parts.delete();
            throw failure;
        }
    }

    /** The names of the adapters, where they are names and say it all, else the paths of the modules. */
    private ModuleSelector targets(Set<String> paths) {
        Set<String> names = new LinkedHashSet<>();
        for (LoraConfig config : configs()) {
            boolean all = config.layersToTransform().isEmpty()
                    && config.excludeModules() == null
                    && config.targetModules() instanceof ModuleSelector.Names;
            if (!all) {
                return ModuleSelector.names(paths);
            }
            if (config.targetModules() instanceof ModuleSelector.Names own) {
                names.addAll(own.names());
            }
        }
        return ModuleSelector.names(names);
    }

    private Map<String, Tensor> named(String path, LayerResult result) {
        Map<String, String> keys = owner(path).keys(path);
        Map<String, Tensor> tensors = new LinkedHashMap<>();
        tensors.put(Objects.requireNonNull(keys.get("a")), result.a());
        tensors.put(Objects.requireNonNull(keys.get("b")), result.b());
        if (result.bias() != null) {
            tensors.put(Objects.requireNonNull(keys.get("bias")), result.bias());
        }
        if (result.magnitude() != null) {
            tensors.put(Objects.requireNonNull(keys.get("magnitude")), result.magnitude());
        }
        return tensors;
    }

    @Override
    public void close() {
        sources.forEach(AdapterSource::close);
        if (base != null) {
            base.close();
        }
    }
}
