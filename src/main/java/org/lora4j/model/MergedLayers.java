package org.lora4j.model;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.bytedeco.javacpp.PointerScope;
import org.lora4j.layer.LoraEmbedding;
import org.lora4j.layer.LoraLayer;
import org.lora4j.layer.MergeReport;

/** Merging over all layers of a model: everywhere or, on an error, nowhere. */
final class MergedLayers {
    private final Injector injector;
    /** The reports of what was merged for good. */
    private Map<String, MergeReport> kept = Map.of();

    MergedLayers(Injector injector) {
        this.injector = injector;
    }

    /** The adapters now part of the weights of some layer. */
    List<String> merged() {
        Set<String> merged = new LinkedHashSet<>();
        injector.injected()
                .values()
                .forEach(layer -> merged.addAll(layer.adapters().merged()));
        return List.copyOf(merged);
    }

    /** The errors of the last merges into quantized layers, by path. */
    Map<String, MergeReport> reports() {
        Map<String, MergeReport> reports = new LinkedHashMap<>(kept);
        injector.injected().forEach((path, layer) -> {
            MergeReport report = layer.adapters().mergeReport();
            if (report != null) {
                reports.put(path, report);
            }
        });
        return reports;
    }

    /** Merges adapters beside those merged already. */
    void merge(List<String> names, boolean safe, Progress progress) {
        List<LoraLayer> layers = List.copyOf(injector.injected().values());
        List<LoraLayer> changed = new ArrayList<>();
        List<List<String>> before = new ArrayList<>();
        try (PointerScope scope = new PointerScope()) {
            for (LoraLayer layer : layers) {
                Set<String> after = new LinkedHashSet<>(layer.adapters().merged());
                before.add(List.copyOf(after));
                changed.add(layer);
                after.addAll(names);
                layer.merge(List.copyOf(after), safe);
                progress.step(changed.size(), layers.size(), layer.path());
            }
        } catch (RuntimeException e) {
            for (int i = 0; i < changed.size(); i++) {
                changed.get(i).merge(before.get(i), false);
            }
            throw e;
        }
    }

    /** Takes all adapters out again. */
    void unmerge() {
        injector.injected().values().forEach(LoraLayer::unmerge);
    }

    /** Makes the merged weights the base weights. */
    void keep() {
        shareAgain();
        kept = reports();
        injector.injected().values().forEach(LoraLayer::keepMerged);
    }

    /** Layers that shared an embedding's weight and got the same update share the merged one. */
    private void shareAgain() {
        for (LoraLayer layer : injector.injected().values()) {
            boolean follows = layer.adapters().mergedFollowing();
            for (LoraLayer other : follows ? injector.injected().values() : List.<LoraLayer>of()) {
                if (other instanceof LoraEmbedding && other.weight().equal(layer.weight())) {
                    layer.weight().set_data(other.weight().detach());
                }
            }
        }
    }
}
