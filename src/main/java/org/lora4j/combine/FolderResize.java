package org.lora4j.combine;

import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.TreeMap;
import org.bytedeco.pytorch.Tensor;
import org.lora4j.config.LoraConfig;
import org.lora4j.ops.Tensors;

/**
 * An adapter in PEFT's folder written again with other ranks: at each layer the best approximation of its update of that
 * rank, from the QR of the factors and a small singular value decomposition in float64. Biases, magnitudes and what else
 * the adapter keeps stay as they are.
 */
public final class FolderResize {
    private final AdapterSource source;
    private final CombineOptions options;

    private FolderResize(AdapterSource source, RankRule rule) {
        this.source = source;
        this.options = CombineOptions.builder(CombinationType.LINEAR).rank(rule).build();
    }

    /**
     * Changes the ranks of an adapter.
     *
     * @param rule for the new ranks; a number above a layer's own rank fills up with zeros
     * @param out the folder of the new adapter, which must hold none
     * @throws IllegalArgumentException if something does not fit; nothing is written then
     * @throws IOException if a file cannot be read or written
     */
    public static CombineReport resize(Path folder, RankRule rule, Path out, LayerListener listener)
            throws IOException {
        long start = System.nanoTime();
        AdapterWork work = new AdapterWork(out);
        try (AdapterSource source = AdapterSource.open(folder)) {
            FolderResize resize = new FolderResize(source, rule);
            List<LayerReport> layers = resize.write(work, listener);
            return new CombineReport(
                    "resize",
                    List.of(folder.toString()),
                    List.of(),
                    rule.toString(),
                    layers,
                    List.of(),
                    (System.nanoTime() - start) / 1e9);
        }
    }

    private LayerInput input(String path) {
        LayerInput.Member all = source.member(path, 0, 1);
        return new LayerInput(
                path, List.of(new LayerInput.Member(0, all.a(), all.b(), all.scale(), 1, all.bias(), null)), null);
    }

    private List<LayerReport> write(AdapterWork work, LayerListener listener) throws IOException {
        if (!source.config().targetParameters().isEmpty()) {
            throw new IllegalArgumentException(source.name() + " has targetParameters "
                    + source.config().targetParameters() + ", whose factors hold one rank for each expert: resize"
                    + " adapters of targetModules");
        }
        Map<String, String> modules = new TreeMap<>();
        source.layers().keySet().forEach(path -> modules.put(path, AdapterSource.configPath(path)));
        CombinedLayers layers = new CombinedLayers(modules, this::input, options);
        layers.check();
        PartFiles parts = work.parts();
        List<LayerReport> reports = new ArrayList<>();
        try {
            Map<String, Integer> ranks = layers.<IOException>forEach(
                    path -> Tensors.type(source.member(path, 0, 1).a()),
                    source.config().loraBias(),
                    false,
                    (path, result) -> {
                        parts.write(reports.size(), named(path, result));
                        reports.add(result.report());
                        listener.layer(reports.size(), modules.size(), path);
                    });
            Map<String, Tensor> others = new LinkedHashMap<>();
            source.others().forEach(key -> others.put(key, source.tensors().tensor(key)));
            if (!others.isEmpty()) {
                parts.write(reports.size(), others);
                parts.addAll(reports.size(), Map.of());
            }
            for (int i = 0; i < reports.size(); i++) {
                parts.addAll(i, Map.of());
            }
            work.finish(parts, config(ranks));
            return reports;
        } catch (Throwable failure) {
            parts.delete();
            throw failure;
        }
    }

    private LoraConfig config(Map<String, Integer> ranks) {
        LoraConfig ofRanks = CombinedConfig.of(
                List.of(source.config()),
                ranks,
                Objects.requireNonNull(source.config().targetModules()),
                options);
        return source.config().toBuilder()
                .r(ofRanks.r())
                .loraAlpha(ofRanks.loraAlpha())
                .rankPattern(ofRanks.rankPattern())
                .alphaPattern(ofRanks.alphaPattern())
                .useRslora(false)
                .build();
    }

    private Map<String, Tensor> named(String path, LayerResult result) {
        Map<String, String> keys = source.keys(path);
        Map<String, Tensor> tensors = new LinkedHashMap<>();
        tensors.put(Objects.requireNonNull(keys.get("a")), result.a());
        tensors.put(Objects.requireNonNull(keys.get("b")), result.b());
        if (result.bias() != null) {
            tensors.put(Objects.requireNonNull(keys.get("bias")), result.bias());
        }
        Tensor magnitude = source.member(path, 0, 1).magnitude();
        if (magnitude != null) {
            tensors.put(Objects.requireNonNull(keys.get("magnitude")), magnitude);
        }
        return tensors;
    }
}
