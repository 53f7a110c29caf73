package org.lora4j.combine;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Set;
import java.util.TreeSet;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.lora4j.format.DType;
import org.lora4j.format.TensorInfo;
import org.lora4j.ops.MappedTensors;

/** What a fine-tuned checkpoint has to do with its base, by tensor. */
final class CheckpointChanges {
    private static final String WEIGHT = ".weight";
    private static final String BIAS = ".bias";
    private static final Set<DType> FLOATS = Set.of(DType.F64, DType.F32, DType.BF16, DType.F16);

    /** Modules whose matrix is a table of vectors, or turns hidden states into words, in the models of transformers. */
    private static final Set<String> TABLES = Set.of(
            "embed_tokens",
            "wte",
            "wpe",
            "word_embeddings",
            "position_embeddings",
            "token_type_embeddings",
            "embed_in",
            "tok_embeddings",
            "shared",
            "embed_positions",
            "lm_head",
            "embed_out",
            "score",
            "classifier");

    private final MappedTensors base;
    private final MappedTensors tuned;
    private final ExtractOptions options;
    /** Paths of the modules whose weight gets factors, in the order of the fine-tuned file. */
    private final List<String> targets = new ArrayList<>();
    /** Paths of targets whose bias changed. */
    private final Set<String> biases = new LinkedHashSet<>();
    /** Paths of modules that are kept whole. */
    private final Set<String> whole = new TreeSet<>();

    private final List<String> notes = new ArrayList<>();
    private final List<String> problems = new ArrayList<>();
    private final List<String> others = new ArrayList<>();

    /** @throws IllegalArgumentException listing all that does not fit */
    CheckpointChanges(MappedTensors base, MappedTensors tuned, ExtractOptions options) {
        this.base = base;
        this.tuned = tuned;
        this.options = options;
        base.names().stream().filter(name -> !tuned.names().contains(name)).forEach(name -> {
            if (!repeats(base, name)) {
                problems.add("the fine-tuned checkpoint lacks " + name);
            }
        });
        for (String name : tuned.names()) {
            if (isTarget(name)) {
                targets.add(module(name));
            }
        }
        tuned.names().stream().filter(name -> !isTarget(name)).forEach(this::other);
        if (targets.isEmpty()) {
            problems.add(
                    options.targets() == null
                            ? "the checkpoints share no matrix"
                            : "no matrix of the checkpoints matches the targets " + options.targets());
        }
        if (!others.isEmpty() && options.others() == ExtractOptions.Others.ERROR) {
            problems.add("beside the targets these changed: " + String.join(", ", others)
                    + ": keep them with Others.SAVE (--others save), or extract from a checkpoint without");
        }
        if (!problems.isEmpty()) {
            throw new IllegalArgumentException(
                    "no adapter can be extracted from these checkpoints: " + String.join("; ", problems));
        }
    }

    private static String module(String tensor) {
        return tensor.substring(0, Math.max(0, tensor.lastIndexOf('.')));
    }

    private static String last(String path) {
        return path.substring(path.lastIndexOf('.') + 1);
    }

    private boolean isTarget(String name) {
        if (!name.endsWith(WEIGHT) || !base.names().contains(name)) {
            return false;
        }
        TensorInfo before = base.info(name);
        TensorInfo after = tuned.info(name);
        return before.shape().length == 2
                && Arrays.equals(before.shape(), after.shape())
                && FLOATS.contains(before.dtype())
                && FLOATS.contains(after.dtype())
                && (options.targets() != null || !TABLES.contains(last(module(name))))
                && options.means(module(name));
    }

    private void other(String name) {
        String module = module(name);
        if (module.isEmpty()) {
            if (!base.names().contains(name) || !equal(base, name, name)) {
                problems.add(name + " changed and belongs to no module, so modules_to_save cannot hold it");
            }
        } else if (!base.names().contains(name)) {
            if (!repeats(tuned, name)) {
                others.add(name + " (new)");
                notes.add(name + " is not in the base: load the adapter into a model that has " + module);
                keep(module);
            }
        } else if (!Arrays.equals(base.info(name).shape(), tuned.info(name).shape())) {
            grown(name, module);
        } else if (!equal(base, name, name)) {
            others.add(name);
            if (name.endsWith(BIAS) && targets.contains(module)) {
                biases.add(module);
            } else {
                keep(module);
            }
        }
    }

    private void grown(String name, String module) {
        long[] before = base.info(name).shape();
        long[] after = tuned.info(name).shape();
        boolean rows = before.length == after.length
                && before.length > 0
                && Arrays.equals(
                        Arrays.copyOfRange(before, 1, before.length), Arrays.copyOfRange(after, 1, after.length));
        if (!rows || !TABLES.contains(last(module))) {
            problems.add(name + " is " + Arrays.toString(before) + " in the base and " + Arrays.toString(after)
                    + " in the fine-tuned checkpoint");
            return;
        }
        others.add(name + " (" + before[0] + " to " + after[0] + " rows)");
        notes.add(name + " has " + after[0] + " rows, the base " + before[0]
                + ": resize the model's embeddings before loading the adapter");
        keep(module);
    }

    private void keep(String module) {
        if (targets.contains(module)) {
            problems.add("module " + module + " would need factors and be kept whole: leave it out of the targets");
        }
        whole.add(module);
    }

    /** Whether an output layer only repeats the embeddings of its checkpoint, which tying stands for. */
    private static boolean repeats(MappedTensors file, String name) {
        if (!last(module(name)).equals("lm_head") || !name.endsWith(WEIGHT)) {
            return false;
        }
        return file.names().stream()
                .filter(other -> last(module(other)).equals("embed_tokens")
                        || last(module(other)).equals("wte"))
                .anyMatch(other ->
                        Arrays.equals(file.info(other).shape(), file.info(name).shape())
                                && equal(file, other, file, name));
    }

    private boolean equal(MappedTensors one, String name, String other) {
        return equal(one, name, tuned, other);
    }

    private static boolean equal(MappedTensors one, String name, MappedTensors two, String other) {
        try (PointerScope scope = new PointerScope()) {
            Tensor before = one.tensor(name);
            Tensor after = two.tensor(other);
            return before.to(torch.promote_types(before.scalar_type(), after.scalar_type()))
                    .equal(after.to(torch.promote_types(before.scalar_type(), after.scalar_type())));
        }
    }

    List<String> targets() {
        return targets;
    }

    boolean hasBias(String path) {
        return biases.contains(path);
    }

    boolean hasBiases() {
        return !biases.isEmpty();
    }

    /** Keeps a target whole whose bias changed and whose weight did not. */
    void keepWhole(String path) {
        biases.remove(path);
        whole.add(path);
    }

    Set<String> whole() {
        return whole;
    }

    List<String> notes() {
        return notes;
    }

    /** All tensors of the modules that are kept whole. */
    List<String> wholeTensors() {
        return tuned.names().stream()
                .filter(name -> whole.contains(module(name)))
                .toList();
    }

    /** The paths of all modules with a tensor. */
    Set<String> modules() {
        Set<String> modules = new TreeSet<>();
        tuned.names().forEach(name -> modules.add(module(name)));
        return modules;
    }
}
