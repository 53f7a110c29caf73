package org.lora4j.merge;

import java.io.IOException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Set;
import org.bytedeco.javacpp.PointerScope;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.ShardedCheckpoint.Location;
import org.lora4j.format.TensorInfo;
import org.lora4j.merge.AdapterKey.Role;
import org.lora4j.merge.TensorEdit.BiasUpdate;
import org.lora4j.merge.TensorEdit.Update;

/** Finds the tensors that the factors of one adapter are added to, and in which form these store the matrix. */
final class FactorMatching {
    /** Models whose linear layers are Hugging Face's Conv1D, which stores (in, out). */
    private static final Set<String> CONV1D = Set.of("gpt2", "openai-gpt", "imagegpt", "decision_transformer");

    private static final Set<String> CONV1D_LAYERS = Set.of("c_attn", "c_proj", "c_fc", "q_attn");

    private final Matching matching;
    private final BaseCheckpoint base;
    private final AdapterSource adapter;
    private final ExpertMatching experts;

    FactorMatching(Matching matching, AdapterSource adapter) {
        this.matching = matching;
        this.base = matching.base();
        this.adapter = adapter;
        this.experts = new ExpertMatching(matching, adapter);
    }

    /** Adds what a module's tensors do to the edits, or why they cannot. */
    void match(AdapterSource.Module module) throws IOException {
        boolean embedding = module.keys.containsKey(Role.EMBEDDING_A) || module.keys.containsKey(Role.EMBEDDING_B);
        AdapterKey a = module.keys.get(embedding ? Role.EMBEDDING_A : Role.A);
        AdapterKey b = module.keys.get(embedding ? Role.EMBEDDING_B : Role.B);
        if (a == null || b == null) {
            String there = module.keys.values().iterator().next().key();
            matching.problem(
                    adapter, there + " has no " + (a == null ? "A" : "B") + " beside it: the file is incomplete");
            return;
        }
        if (embedding && (module.keys.containsKey(Role.A) || module.keys.containsKey(Role.B))) {
            matching.problem(
                    adapter, module.path + " has factors of an embedding and of a linear layer: the file mixes two");
            return;
        }
        TensorInfo left = adapter.info(b);
        TensorInfo right = adapter.info(a);
        for (TensorInfo factor : List.of(left, right)) {
            boolean wide = factor.dtype() == org.lora4j.format.DType.F64;
            if (!wide && !Numbers.isFloat(factor.dtype()) || factor.shape().length < 2 || factor.bytes() == 0) {
                matching.problem(adapter, factor + " is no factor: it must be a matrix of F32, BF16, F16 or F64");
                return;
            }
        }
        if (experts.match(module, right, left)) {
            return;
        }
        String path = matching.mapped(adapter, module.path);
        String configPath = module.path;
        String tensor = path + ".weight";
        String bias = path + ".bias";
        if (base.find(tensor) == null && base.find(path + ".in_proj_weight") != null) {
            tensor = path + ".in_proj_weight";
            bias = path + ".in_proj_bias";
        }
        // The rank of an attention's output projection is that of the attention.
        if (module.around != null && base.find(matching.mapped(adapter, module.around) + ".in_proj_weight") != null) {
            configPath = module.around;
        }
        boolean output = BaseCheckpoint.isOutput(tensor) && base.tied();
        if (base.find(tensor) == null && !output) {
            matching.problem(adapter, matching.missing(a.key(), tensor));
            return;
        }
        if (repeatsInput(module, tensor)) {
            return;
        }
        for (String target :
                matching.targets(adapter, tensor, a.key(), adapter.config().ensureWeightTying())) {
            add(module, target, configPath, embedding, right, left);
        }
        AdapterKey added = module.keys.get(Role.BIAS);
        if (added != null) {
            bias(added, bias, configPath);
        }
    }

    /**
     * Whether the factors of an output layer that is tied, with {@code ensure_weight_tying}, are those of the embedding once
     * more: PEFT saves them under both names. If they are others that is a problem.
     */
    private boolean repeatsInput(AdapterSource.Module module, String tensor) throws IOException {
        if (!base.tied() || !adapter.config().ensureWeightTying() || !BaseCheckpoint.isOutput(tensor)) {
            return false;
        }
        for (AdapterSource.Module input : adapter.modules()) {
            AdapterKey a = input.keys.get(Role.EMBEDDING_A);
            AdapterKey b = input.keys.get(Role.EMBEDDING_B);
            boolean tied = a != null
                    && b != null
                    && (matching.mapped(adapter, input.path) + ".weight").equals(base.inputEmbedding());
            if (tied) {
                if (!isTransposed(module.keys.get(Role.A), b) || !isTransposed(module.keys.get(Role.B), a)) {
                    matching.problem(
                            adapter,
                            module.path + " has other factors than " + input.path
                                    + ", and ensure_weight_tying says they are the same: merge the adapter PEFT saved");
                }
                return true;
            }
        }
        return false;
    }

    private boolean isTransposed(@Nullable AdapterKey one, AdapterKey other) throws IOException {
        try (PointerScope scope = new PointerScope()) {
            return one != null
                    && adapter.load(one.key()).equal(adapter.load(other.key()).t());
        }
    }

    private void add(
            AdapterSource.Module module,
            String target,
            String configPath,
            boolean embedding,
            TensorInfo a,
            TensorInfo b) {
        TensorEdit edit = matching.edit(target);
        long[] shape = edit.shape();
        int rank = adapter.config().rankFor(configPath);
        long[] shapeA = a.shape();
        long[] shapeB = b.shape();
        if (shapeA[0] != rank) {
            matching.problem(
                    adapter,
                    a.name() + " has rank " + shapeA[0] + " and " + rank + " in adapter_config.json (" + configPath
                            + "): use the configuration the factors came with");
            return;
        }
        if (shape.length > 2 && shapeA.length == shape.length && shapeA[1] > shape[1]) {
            matching.problem(
                    adapter,
                    target + " belongs to a convolution with " + shapeA[1] / Math.max(1, shape[1])
                            + " groups: the update mixes all channels and does not fit the grouped weight; keep it unmerged");
            return;
        }
        boolean tail = shape.length <= 2
                || shapeA.length == shape.length
                        && Arrays.equals(tail(shapeA, 1), tail(shape, 1))
                        && Numbers.count(tail(shapeB, 2)) == 1;
        Matrices matrices = Matrices.of(shape, false);
        long in = Numbers.count(tail(shapeA, 1));
        long out = shapeB[0];
        boolean ranks = shapeB[1] == rank && Numbers.count(tail(shapeB, 2)) == 1;
        boolean straight = out == matrices.rows() && in == matrices.columns();
        boolean swapped = shape.length == 2 && in == matrices.rows() && out == matrices.columns();
        boolean fits = shape.length >= 2 && tail && ranks && (embedding ? swapped : straight || swapped);
        if (!fits) {
            matching.problem(
                    adapter,
                    a + " and " + b + " do not fit " + target + " " + Arrays.toString(shape)
                            + ": use the checkpoint the adapter was made for");
            return;
        }
        boolean asSwapped = embedding || !straight || swapped && storesInOut(target);
        AdapterKey magnitude = module.keys.get(Role.MAGNITUDE);
        if (magnitude != null && Numbers.count(adapter.info(magnitude).shape()) != out) {
            matching.problem(adapter, adapter.info(magnitude) + " must have the " + out + " outputs of " + target);
            return;
        }
        edit.updates.add(new Update(
                adapter.index(),
                a.name(),
                b.name(),
                magnitude == null ? null : magnitude.key(),
                rank,
                scale(configPath),
                asSwapped,
                1,
                0,
                0));
    }

    /** The adapter's scale at a path, times its weight. */
    private double scale(String configPath) {
        return adapter.weight() * adapter.config().scale(configPath);
    }

    /** Whether a square weight is stored as (in, out), which only the model's code says. */
    private boolean storesInOut(String target) {
        String[] parts = target.split("\\.", -1);
        String module = parts.length < 2 ? "" : parts[parts.length - 2];
        return adapter.config().fanInFanOut() || CONV1D.contains(base.modelType()) && CONV1D_LAYERS.contains(module);
    }

    private void bias(AdapterKey key, String target, String configPath) {
        Location stored = base.find(target);
        TensorInfo info = adapter.info(key);
        if (stored == null) {
            matching.problem(
                    adapter,
                    key.key() + " is a bias on B, and the checkpoint has no " + target
                            + " to add it to: keep the adapter unmerged");
        } else if (!Arrays.equals(stored.info().shape(), info.shape()) || !Numbers.isFloat(info.dtype())) {
            matching.problem(adapter, info + " does not fit " + stored.info());
        } else {
            matching.edit(target).biases.add(new BiasUpdate(adapter.index(), key.key(), scale(configPath)));
        }
    }

    static long[] tail(long[] shape, int from) {
        return from >= shape.length ? new long[0] : Arrays.copyOfRange(shape, from, shape.length);
    }

    /** Factors of {@code target_parameters}: for one parameter of a module, or for a stack of experts. */
    private static final class ExpertMatching {
        private final Matching matching;
        private final BaseCheckpoint base;
        private final AdapterSource adapter;

        /** Where the rows of a parameter of stacked experts are in a checkpoint that has a tensor for each expert. */
        private record Split(String parameter, List<List<String>> spellings) {}

        private static final List<Split> SPLITS = List.of(
                new Split("gate_up_proj", List.of(List.of("gate_proj", "up_proj"), List.of("w1", "w3"))),
                new Split("down_proj", List.of(List.of("down_proj"), List.of("w2"))));

        /** A parameter the factors may belong to, with the updates they would be. */
        private record Fit(String parameter, List<String> tensors, List<Update> updates) {}

        ExpertMatching(Matching matching, AdapterSource adapter) {
            this.matching = matching;
            this.base = matching.base();
            this.adapter = adapter;
        }

        /** Whether a configuration names parameters of this module; then the factors are matched to one of them. */
        boolean match(AdapterSource.Module module, TensorInfo a, TensorInfo b) {
            List<String> parameters = new ArrayList<>();
            for (String name : adapter.config().targetParameters()) {
                String parameter = name.substring(name.lastIndexOf('.') + 1);
                String path = module.path + "." + parameter;
                if ((path.equals(name) || path.endsWith("." + name)) && !parameters.contains(parameter)) {
                    parameters.add(parameter);
                }
            }
            String home = matching.mapped(adapter, module.path);
            boolean own = parameters.stream().anyMatch(name -> base.find(home + "." + name) != null);
            if (!own && module.wrappers == 0 && base.find(home + ".weight") != null) {
                return false;
            }
            if (parameters.isEmpty()) {
                if (module.wrappers > 0) {
                    matching.problem(
                            adapter,
                            a.name() + " is for one of several parameters of " + module.path
                                    + ", but target_parameters names none of them");
                    return true;
                }
                return false;
            }
            List<Fit> fits = new ArrayList<>();
            for (String parameter : parameters) {
                Fit fit = fit(module, parameter, a, b);
                if (fit != null) {
                    fits.add(fit);
                }
            }
            Fit chosen = fits.isEmpty() ? null : fits.size() == 1 ? fits.get(0) : byOrder(module, fits);
            if (chosen == null) {
                matching.problem(
                        adapter,
                        a + " and " + b + (fits.isEmpty() ? " fit none" : " may be for any")
                                + " of the parameters " + parameters + " of " + module.path
                                + " in the checkpoint: use the one the adapter was made for");
                return true;
            }
            for (int i = 0; i < chosen.tensors().size(); i++) {
                matching.edit(chosen.tensors().get(i))
                        .updates
                        .add(chosen.updates().get(i));
            }
            return true;
        }

        /** The innermost wrapper has the first parameter of the module, and gate_up_proj comes before down_proj. */
        private static @Nullable Fit byOrder(AdapterSource.Module module, List<Fit> fits) {
            for (Fit fit : fits) {
                int wrappers = fit.parameter().equals("gate_up_proj")
                        ? 1
                        : fit.parameter().equals("down_proj") ? 0 : -1;
                if (wrappers < 0 || fits.size() != 2) {
                    return null;
                }
                if (wrappers == module.wrappers) {
                    return fit;
                }
            }
            return null;
        }

        private @Nullable Fit fit(AdapterSource.Module module, String parameter, TensorInfo a, TensorInfo b) {
            String configPath = module.path + "." + parameter;
            int rank = adapter.config().rankFor(configPath);
            long total = a.shape()[0];
            if (total % rank != 0 || a.shape().length != 2 || b.shape().length != 2 || b.shape()[1] != total) {
                return null;
            }
            int count = Math.toIntExact(total / rank);
            double scale = adapter.weight() * adapter.config().scale(configPath);
            String path = matching.mapped(adapter, module.path);
            Location whole = base.find(path + "." + parameter);
            if (whole != null) {
                long[] shape = matching.edit(whole.info().name()).shape();
                boolean stacked = shape.length == 3 && shape[0] == count;
                if (!stacked && !(shape.length == 2 && count == 1)) {
                    return null;
                }
                Matrices matrices = Matrices.of(shape, stacked);
                boolean straight = b.shape()[0] == matrices.rows() && a.shape()[1] == matrices.columns();
                boolean swapped = stacked && a.shape()[1] == matrices.rows() && b.shape()[0] == matrices.columns();
                if (!straight && !swapped) {
                    return null;
                }
                boolean inOut = swapped && (!straight || storesInOut());
                int expert = stacked ? -1 : 0;
                return new Fit(
                        parameter,
                        List.of(whole.info().name()),
                        List.of(update(a, b, rank, scale, inOut, count, expert, 0)));
            }
            return split(path, parameter, a, b, rank, scale, count);
        }

        private Update update(
                TensorInfo a, TensorInfo b, int rank, double scale, boolean inOut, int count, int expert, long row) {
            return new Update(adapter.index(), a.name(), b.name(), null, rank, scale, inOut, count, expert, row);
        }

        /** Models whose experts are stored as (experts, in, out). */
        private boolean storesInOut() {
            return Set.of("gpt_oss", "openai_privacy_filter").contains(base.modelType());
        }

        private @Nullable Fit split(
                String path, String parameter, TensorInfo a, TensorInfo b, int rank, double scale, int count) {
            for (String module : List.of(path, path.replace(".mlp.experts", ".block_sparse_moe.experts"))) {
                for (Split split : SPLITS) {
                    for (List<String> names :
                            split.parameter().equals(parameter) ? split.spellings() : List.<List<String>>of()) {
                        List<String> tensors = new ArrayList<>();
                        List<Update> updates = new ArrayList<>();
                        boolean fits = true;
                        for (int expert = 0; expert < count; expert++) {
                            long row = 0;
                            for (String name : names) {
                                String tensor = module + "." + expert + "." + name + ".weight";
                                Location stored = base.find(tensor);
                                fits &= stored != null
                                        && stored.info().shape().length == 2
                                        && stored.info().shape()[1] == a.shape()[1];
                                tensors.add(tensor);
                                updates.add(update(a, b, rank, scale, false, count, expert, row));
                                row += stored == null ? 0 : stored.info().shape()[0];
                            }
                            fits &= row == b.shape()[0];
                        }
                        if (fits && base.find(module + "." + count + "." + names.get(0) + ".weight") == null) {
                            return new Fit(parameter, tensors, updates);
                        }
                    }
                }
            }
            return null;
        }
    }
}
