package org.lora4j.model;

import java.io.IOException;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.stream.LongStream;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.InitLoraWeights;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.PeftCompat;
import org.lora4j.layer.Adapter;
import org.lora4j.layer.Factors;
import org.lora4j.layer.Fresh;
import org.lora4j.layer.LoraLayer;
import org.lora4j.layer.LoraWeights;
import org.lora4j.layer.SavedParameter;
import org.lora4j.layer.TokenRows;
import org.lora4j.ops.Tensors;

/** Makes the adapters of one model: new ones, and those in files. The model does not change. */
final class AdapterFactory {
    /**
     * An adapter that is not attached yet.
     *
     * @param layers the layers it has weights or rows for; those not in the model yet are to be injected
     * @param tokens the layers its rows belong to, by the path of the rows
     */
    record Made(Adapter adapter, Map<String, LoraLayer> layers, Map<String, List<LoraLayer>> tokens) {}

    private final Module base;
    private final Injector injector;

    AdapterFactory(Module base, Injector injector) {
        this.base = base;
        this.injector = injector;
    }

    /** @param batches for the initialisations that look at data; null for the others */
    Made fresh(String name, LoraConfig config, @Nullable Iterable<? extends CalibrationBatch> batches) {
        return injector.onItsLayers(config, () -> freshHere(name, config, batches));
    }

    private Made freshHere(String name, LoraConfig config, @Nullable Iterable<? extends CalibrationBatch> batches) {
        LoraConfig given = injector.resolve(config);
        Map<String, LoraLayer> all = injector.targets(given);
        DataStart.Found found = batches == null
                ? new DataStart.Found(given, Map.of())
                : injector.whileInjected(all, () -> new DataStart(given, all, batches).run());
        LoraConfig resolved = found.config();
        // EVA may leave layers without an adapter.
        Map<String, LoraLayer> targets = resolved.equals(given) ? all : injector.among(all, resolved);
        Map<String, LoraWeights> weights = new LinkedHashMap<>();
        Map<String, SavedParameter> saved = new LinkedHashMap<>();
        Map<String, String> following = injector.following(resolved, targets.keySet());
        targets.forEach((path, layer) -> {
            if (following.containsKey(path)) {
                weights.put(path, follow(weights, following.get(path)));
                return;
            }
            Fresh fresh = layer.fresh(resolved, found.starts().get(path));
            weights.put(path, fresh.weights());
            residual(saved, layer, fresh);
        });
        injector.saved(resolved, targets.keySet(), path -> false)
                .forEach((path, parameter) -> saved.put(path, new SavedParameter(parameter, parameter)));
        follow(resolved, saved);
        Map<String, LoraLayer> layers = new LinkedHashMap<>(targets);
        Map<String, TokenRows> tokens = new LinkedHashMap<>();
        Map<String, List<LoraLayer>> tied = injector.tokenLayers(resolved, layers);
        tied.forEach((path, own) -> {
            long[] ids = ids(resolved, path, own.get(0));
            Tensor weight = own.get(0).weight();
            Tensor rows = weight.detach().index_select(0, Tensor.create(ids).to(weight.device(), ScalarType.Long));
            tokens.put(path, new TokenRows(path, weight, ids, rows.to(own.get(0).factorType())));
        });
        return new Made(new Adapter(name, resolved, weights, saved, tokens), layers, tied);
    }

    private static LoraWeights follow(Map<String, LoraWeights> weights, @Nullable String embedding) {
        return LoraWeights.following(Objects.requireNonNull(weights.get(embedding), "the embedding comes first"));
    }

    /** Lets layers that share the weight of a saved embedding compute with its copy. */
    private void follow(LoraConfig config, Map<String, SavedParameter> saved) {
        List<String> modules =
                saved.keySet().stream().map(AdapterFactory::module).toList();
        injector.following(config, modules).forEach((path, embedding) -> {
            SavedParameter copy = saved.get(embedding + ".weight");
            if (copy != null) {
                copy.follow(path, injector.linear(path));
            }
        });
    }

    private static String module(String parameter) {
        return parameter.substring(0, Math.max(0, parameter.lastIndexOf('.')));
    }

    private static void residual(Map<String, SavedParameter> saved, LoraLayer layer, Fresh fresh) {
        if (fresh.residual() != null) {
            saved.put(layer.path() + ".weight", SavedParameter.residual(layer.weight(), fresh.residual()));
        }
    }

    /** The tokens whose rows an adapter trains at a module. */
    private static long[] ids(LoraConfig config, String path, LoraLayer layer) {
        for (Map.Entry<String, List<Integer>> entry :
                config.trainableTokenIndices().entrySet()) {
            String name = entry.getKey();
            if (path.equals(name) || path.endsWith("." + name)) {
                long[] ids =
                        entry.getValue().stream().mapToLong(Integer::longValue).toArray();
                long rows = layer.weight().size(0);
                for (long id : ids) {
                    if (id >= rows) {
                        throw new IllegalArgumentException("trainable_token_indices has " + id + " for '" + path
                                + "', which has the tokens 0 to " + (rows - 1));
                    }
                }
                if (LongStream.of(ids).distinct().count() < ids.length) {
                    throw new IllegalArgumentException(
                            "trainable_token_indices for '" + path + "' has a token twice: " + entry.getValue());
                }
                return ids;
            }
        }
        throw new IllegalStateException(path);
    }

    /** @throws IllegalArgumentException listing every tensor that does not fit */
    Made loaded(String name, LoraConfig config, Path folder) throws IOException {
        InitLoraWeights.Kind kind = config.initLoraWeights().kind();
        if (kind == InitLoraWeights.Kind.CORDA || kind == InitLoraWeights.Kind.LORA_GA) {
            throw new IllegalArgumentException("the adapter in " + folder + " started from initLoraWeights="
                    + config.initLoraWeights()
                    + ", which changes the base weights it belongs to by data that is not in the folder: save it with "
                    + "saveConverted (in PEFT, save_pretrained with path_initial_model_for_weight_conversion)");
        }
        return injector.onItsLayers(config, () -> loadedHere(name, config, folder));
    }

    private Made loadedHere(String name, LoraConfig config, Path folder) throws IOException {
        LoraConfig resolved = injector.resolve(config);
        Map<String, LoraLayer> targets = injector.targets(resolved);
        Set<String> present = AdapterFiles.keys(folder);
        FileKeys keys = new FileKeys(targets.values());
        Map<String, Tensor> parameters =
                injector.saved(resolved, targets.keySet(), path -> present.contains(keys.saved(path)));
        Map<String, LoraLayer> layers = new LinkedHashMap<>(targets);
        Map<String, List<LoraLayer>> tied = injector.tokenLayers(resolved, layers);
        Map<String, long[]> ids = new LinkedHashMap<>();
        tied.forEach((path, sharing) -> ids.put(path, ids(resolved, path, sharing.get(0))));
        boolean lenient = injector.active().has(PeftCompat.LENIENT_KEYS);
        Map<String, String> following = injector.following(resolved, targets.keySet());
        Map<String, LoraLayer> own = new LinkedHashMap<>(targets);
        own.keySet().removeAll(following.keySet());
        var contents = new AdapterFiles.Contents(
                own,
                keys,
                parameters,
                tokenShapes(keys, tied, ids),
                repeats(keys, resolved, targets, following, parameters));
        Map<String, Tensor> values = AdapterFiles.read(folder, resolved, contents, Parameters.of(base), lenient);
        Map<String, LoraWeights> weights = new LinkedHashMap<>();
        Map<String, SavedParameter> saved = new LinkedHashMap<>();
        targets.forEach((path, layer) -> {
            if (following.containsKey(path)) {
                weights.put(path, follow(weights, following.get(path)));
                return;
            }
            Map<LoraWeights.Part, Tensor> parts = new LinkedHashMap<>();
            LoraWeights.Part.of(resolved).forEach(part -> {
                Tensor value = values.get(keys.factor(layer, part));
                if (value != null) {
                    parts.put(part, own(value, layer));
                }
            });
            if (parts.size() < LoraWeights.Part.of(resolved).size()) {
                layer.newWeights(resolved).parts().forEach(parts::putIfAbsent);
            }
            LoraWeights made = new LoraWeights(resolved, layer.configPath(), parts);
            weights.put(path, made);
            if (resolved.initLoraWeights().kind() == InitLoraWeights.Kind.MICA) {
                made.freezeB();
            }
            if (resolved.initLoraWeights().changesBase()) {
                // As PEFT does: the start is computed anew, since the file has only what came of it.
                Fresh fresh = layer.fresh(resolved, null);
                residual(saved, layer, fresh);
                Factors initial = fresh.weights().initial();
                if (initial != null) {
                    made.initial(new Factors(initial.a().clone(), initial.b().clone()));
                }
                fresh.weights().close();
            }
        });
        parameters.forEach((path, parameter) ->
                saved.put(path, new SavedParameter(parameter, values.getOrDefault(keys.saved(path), parameter))));
        follow(resolved, saved);
        Map<String, TokenRows> tokens = new LinkedHashMap<>();
        tied.forEach((path, sharing) -> {
            Tensor weight = sharing.get(0).weight();
            long[] indices = Objects.requireNonNull(ids.get(path));
            Tensor value = values.get(keys.tokens(path));
            if (value == null) {
                value = weight.detach().index_select(0, Tensor.create(indices).to(weight.device(), ScalarType.Long));
            }
            tokens.put(path, new TokenRows(path, weight, indices, own(value, sharing.get(0))));
        });
        return new Made(new Adapter(name, resolved, weights, saved, tokens), layers, tied);
    }

    /** The keys that repeat tensors of an embedding for layers that follow it, with the keys they repeat. */
    private Map<String, String> repeats(
            FileKeys keys,
            LoraConfig config,
            Map<String, LoraLayer> targets,
            Map<String, String> following,
            Map<String, Tensor> saved) {
        Map<String, String> repeats = new LinkedHashMap<>();
        following.forEach((path, embedding) -> {
            LoraLayer layer = Objects.requireNonNull(targets.get(path));
            LoraLayer source = Objects.requireNonNull(targets.get(embedding));
            repeats.put(keys.factor(layer, LoraWeights.Part.A), keys.factor(source, LoraWeights.Part.B));
            repeats.put(keys.factor(layer, LoraWeights.Part.B), keys.factor(source, LoraWeights.Part.A));
        });
        List<String> modules =
                saved.keySet().stream().map(AdapterFactory::module).toList();
        injector.following(config, modules)
                .forEach((path, embedding) ->
                        repeats.put(keys.saved(path + ".weight"), keys.saved(embedding + ".weight")));
        return repeats;
    }

    private static Map<String, long[]> tokenShapes(
            FileKeys keys, Map<String, List<LoraLayer>> tied, Map<String, long[]> ids) {
        Map<String, long[]> shapes = new LinkedHashMap<>();
        tied.forEach((path, own) -> shapes.put(keys.tokens(path), new long[] {
            Objects.requireNonNull(ids.get(path)).length, own.get(0).weight().size(1)
        }));
        return shapes;
    }

    /** A copy in memory of our own, in the type of the layer's factors: the file stays mapped no longer than needed. */
    private Tensor own(Tensor value, LoraLayer layer) {
        if (injector.active().has(PeftCompat.LOW_MEMORY_ROUNDS)) {
            value = value.to(Tensors.type(layer.weight()));
        }
        return value.to(layer.weight().device(), layer.factorType())
                .contiguous()
                .clone();
    }
}
