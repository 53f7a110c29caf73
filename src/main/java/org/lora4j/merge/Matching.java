package org.lora4j.merge;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.NearMisses;
import org.lora4j.format.ShardedCheckpoint.Location;
import org.lora4j.format.TensorInfo;
import org.lora4j.merge.TensorEdit.TokenRows;
import org.lora4j.merge.TensorEdit.Value;

/**
 * Finds for every tensor of the adapters what it changes in the checkpoint. Everything that does not fit is collected, and
 * nothing is left out: a tensor either has an effect, repeats the base, or is a problem.
 */
final class Matching {
    private final BaseCheckpoint base;
    private final List<AdapterSource> adapters;
    private final MergeOptions options;
    private final Tying tying;
    private final Map<String, TensorEdit> edits = new LinkedHashMap<>();
    private final Set<String> problems = new LinkedHashSet<>();
    private final List<String> notes = new ArrayList<>();
    private final Map<String, Object> configChanges = new LinkedHashMap<>();
    private final Map<Integer, NameMapping> mappings = new LinkedHashMap<>();

    Matching(BaseCheckpoint base, List<AdapterSource> adapters, MergeOptions options) {
        this.base = base;
        this.adapters = adapters;
        this.options = options;
        this.tying = new Tying(base, options.tied());
    }

    /** @throws AdapterMisfitException listing all problems */
    void run() throws IOException {
        for (AdapterSource adapter : adapters) {
            problems.addAll(Refusals.of(adapter));
            map(adapter);
        }
        for (AdapterSource adapter : adapters) {
            for (AdapterKey key : adapter.values()) {
                value(adapter, key);
            }
        }
        for (AdapterSource adapter : adapters) {
            for (AdapterKey key : adapter.tokens()) {
                tokens(adapter, key);
            }
            FactorMatching factors = new FactorMatching(this, adapter);
            for (AdapterSource.Module module : adapter.modules()) {
                factors.match(module);
            }
        }
        if (tying.untied()) {
            edit(tying.output());
        }
        growth();
        Requirements requirements = new Requirements(this);
        adapters.forEach(requirements::check);
        if (options.lenient()) {
            notes.addAll(requirements.missing());
        } else {
            problems.addAll(requirements.missing());
        }
        edits.values().forEach(this::checkType);
        if (!problems.isEmpty()) {
            throw new AdapterMisfitException(base.path().toString(), List.copyOf(problems));
        }
        configChanges.putAll(tying.configChanges());
    }

    private void map(AdapterSource adapter) {
        for (String name : adapter.unknown()) {
            problems.add(adapter + ": " + name + " is no name of PEFT's layout; convert the adapter first");
        }
        for (String name : adapter.twice()) {
            problems.add(adapter + ": " + name + " is there in two spellings; remove one");
        }
        Set<String> paths = new LinkedHashSet<>();
        adapter.modules().forEach(module -> paths.add(module.path));
        adapter.tokens().forEach(key -> paths.add(key.path()));
        adapter.values().forEach(key -> paths.add(key.path()));
        paths.removeIf(path -> BaseCheckpoint.isOutput(path + ".weight") || BaseCheckpoint.isOutput(path));
        List<NameMapping> ambiguous = new ArrayList<>();
        NameMapping mapping = NameMapping.find(paths, base, ambiguous);
        if (!ambiguous.isEmpty()) {
            problems.add(adapter + ": its paths are not those of the checkpoint, and several changes of their beginning"
                    + " would do: " + ambiguous + "; rename the adapter's tensors");
        }
        if (!mapping.equals(NameMapping.SAME)) {
            notes.add(adapter + ": the beginning of its paths is another in the checkpoint: " + mapping);
        }
        mappings.put(adapter.index(), mapping);
    }

    /** A path of an adapter in the checkpoint. */
    String mapped(AdapterSource adapter, String path) {
        return mappings.getOrDefault(adapter.index(), NameMapping.SAME).apply(path, base);
    }

    NameMapping mapping(AdapterSource adapter) {
        return mappings.getOrDefault(adapter.index(), NameMapping.SAME);
    }

    BaseCheckpoint base() {
        return base;
    }

    void problem(AdapterSource adapter, String what) {
        problems.add(adapter + ": " + what);
    }

    /** The change of a tensor, which is made if nothing changed it so far. */
    TensorEdit edit(String tensor) {
        return edits.computeIfAbsent(tensor, name -> {
            boolean fromInput = tying.untied() && name.equals(tying.output());
            return new TensorEdit(name, base.find(name), fromInput ? tying.inputLocation() : null);
        });
    }

    /**
     * The tensors that a change of a parameter means: itself, or with tied embeddings what was chosen.
     *
     * @param follows whether the change is meant for both tensors anyway
     */
    List<String> targets(AdapterSource adapter, String tensor, String what, boolean follows) {
        if (!tying.concerns(tensor)) {
            return List.of(tensor);
        }
        List<String> resolved = follows ? tying.both() : tying.resolve(tensor);
        if (resolved.isEmpty()) {
            problem(adapter, Tying.refusal(what, tensor));
        }
        return resolved;
    }

    /** Why there is no tensor of this name, with names that look like it. */
    String missing(String what, String tensor) {
        String path = tensor.substring(0, Math.max(tensor.lastIndexOf('.'), 0));
        for (String quantized : List.of("qweight", "weight_packed", "weight.absmax", "weight_quantized", "SCB")) {
            if (base.find(path + "." + quantized) != null) {
                return what + " belongs to " + path + ", which is quantized (" + path + "." + quantized
                        + "): merge into the checkpoint that was quantized";
            }
        }
        List<String> near = NearMisses.of(tensor, base.names());
        return what + " has no tensor " + tensor + " in the checkpoint"
                + (near.isEmpty() ? "" : "; near misses: " + String.join(", ", near));
    }

    private void value(AdapterSource adapter, AdapterKey key) throws IOException {
        String tensor = mapped(adapter, key.path());
        TensorInfo info = adapter.info(key);
        Location stored = base.find(tensor);
        if (stored != null
                && (BaseCheckpoint.isInput(tensor) || BaseCheckpoint.isOutput(tensor))
                && repeats(adapter, info, stored)) {
            return;
        }
        if (adapter.weight() != 1) {
            problem(
                    adapter,
                    key.key() + " replaces a tensor of the checkpoint, which has no meaning with weight "
                            + adapter.weight() + ": merge with weight 1, or leave it out of the adapter");
            return;
        }
        if (stored == null && tying.concerns(tensor) && repeatsTied(adapter, info)) {
            return;
        }
        List<String> targets =
                targets(adapter, tensor, key.key(), adapter.config().ensureWeightTying());
        for (String target : targets) {
            Location there = base.find(target);
            if (there == null && !tying.concerns(tensor) && !isSaved(adapter.config(), key.path())) {
                problem(adapter, missing(key.key(), target));
                continue;
            }
            if (there != null && !fits(info, there.info(), target)) {
                problem(
                        adapter,
                        key.key() + " is " + info + ", but the checkpoint has " + there.info()
                                + "; use the checkpoint the adapter was made for");
                continue;
            }
            if (there == null) {
                notes.add(adapter + ": adds " + target + ", which the checkpoint does not have");
            }
            TensorEdit edit = edit(target);
            Value value = edit.value;
            if (value == null) {
                edit.value = new Value(adapter.index(), key.key(), info.dtype(), info.shape());
            } else if (!sameBytes(adapters.get(value.adapter()), value.key(), adapter, info)) {
                problem(
                        adapter,
                        key.key() + " and " + value.key() + " of "
                                + adapters.get(value.adapter()) + " both replace " + target
                                + " and differ: merge one of the two adapters");
            }
        }
    }

    /** Whether the adapter says that this parameter is part of a module saved whole. */
    static boolean isSaved(LoraConfig config, String parameter) {
        return config.modulesToSave().stream()
                .anyMatch(name -> parameter.startsWith(name + ".") || parameter.contains("." + name + "."));
    }

    /** Embeddings may have another number of rows. */
    private static boolean fits(TensorInfo value, TensorInfo stored, String tensor) {
        long[] mine = value.shape();
        long[] theirs = stored.shape();
        boolean grows = (BaseCheckpoint.isInput(tensor) || BaseCheckpoint.isOutput(tensor))
                && mine.length == theirs.length
                && mine.length > 0;
        if (grows) {
            theirs[0] = mine[0];
        }
        boolean types =
                value.dtype() == stored.dtype() || Numbers.isFloat(value.dtype()) && Numbers.isFloat(stored.dtype());
        return types && Arrays.equals(mine, theirs);
    }

    private boolean repeatsTied(AdapterSource adapter, TensorInfo info) throws IOException {
        return repeats(adapter, info, tying.inputLocation());
    }

    private boolean repeats(AdapterSource adapter, TensorInfo info, Location stored) throws IOException {
        boolean alike = info.dtype() == stored.info().dtype()
                && Arrays.equals(info.shape(), stored.info().shape());
        if (alike
                && equal(
                        Bytes.of(adapter.file(), info.name()),
                        Bytes.of(stored.file(), stored.info().name()),
                        info.bytes())) {
            notes.add(adapter + ": " + info.name() + " repeats the checkpoint and changes nothing");
            return true;
        }
        return false;
    }

    private static boolean sameBytes(AdapterSource one, String key, AdapterSource other, TensorInfo info)
            throws IOException {
        TensorInfo first = one.file().tensor(key);
        return first.dtype() == info.dtype()
                && Arrays.equals(first.shape(), info.shape())
                && equal(Bytes.of(one.file(), key), Bytes.of(other.file(), info.name()), info.bytes());
    }

    private static boolean equal(Bytes one, Bytes other, long bytes) throws IOException {
        int chunk = (int) Math.min(bytes, 1 << 20);
        ByteBuffer a = ByteBuffer.allocateDirect(chunk);
        ByteBuffer b = ByteBuffer.allocateDirect(chunk);
        for (long at = 0; at < bytes; at += chunk) {
            int count = (int) Math.min(chunk, bytes - at);
            one.read(at, a.clear().limit(count));
            other.read(at, b.clear().limit(count));
            if (!a.flip().equals(b.flip())) {
                return false;
            }
        }
        return true;
    }

    private void tokens(AdapterSource adapter, AdapterKey key) {
        if (adapter.weight() != 1) {
            problem(
                    adapter,
                    key.key() + " replaces rows, which has no meaning with weight " + adapter.weight()
                            + ": merge with weight 1");
            return;
        }
        TensorInfo info = adapter.info(key);
        List<Integer> ids = ids(adapter.config(), key.path());
        String tensor = mapped(adapter, key.path()) + ".weight";
        if (base.find(tensor) == null) {
            problem(adapter, missing(key.key(), tensor));
            return;
        }
        if (ids == null) {
            problem(
                    adapter,
                    key.key() + " has rows of tokens, but trainable_token_indices names none for " + key.path()
                            + ": use the configuration the tensors came with");
            return;
        }
        for (String target : targets(adapter, tensor, key.key(), true)) {
            TensorEdit edit = edit(target);
            long[] shape = edit.shape();
            boolean fits = shape.length == 2
                    && Arrays.equals(info.shape(), new long[] {ids.size(), shape[1]})
                    && ids.stream().allMatch(id -> id >= 0 && id < shape[0])
                    && new HashSet<>(ids).size() == ids.size();
            if (!fits) {
                problem(
                        adapter,
                        key.key() + " is " + info + " for the tokens " + ids + ", but " + target + " is "
                                + Arrays.toString(shape) + ": each token must be a row once");
                continue;
            }
            long[] rows = ids.stream().mapToLong(Integer::longValue).toArray();
            for (TokenRows other : edit.tokens) {
                if (Arrays.stream(other.ids()).anyMatch(id -> ids.contains((int) id))) {
                    problem(
                            adapter,
                            key.key() + " and " + other.key() + " of " + adapters.get(other.adapter())
                                    + " replace the same rows of " + target + ": merge one of the two adapters");
                }
            }
            edit.tokens.add(new TokenRows(adapter.index(), key.key(), rows));
        }
    }

    private static @Nullable List<Integer> ids(LoraConfig config, String path) {
        for (Map.Entry<String, List<Integer>> entry :
                config.trainableTokenIndices().entrySet()) {
            if (path.equals(entry.getKey()) || path.endsWith("." + entry.getKey())) {
                return entry.getValue();
            }
        }
        return null;
    }

    /** Embeddings with another number of rows change the size of the vocabulary, and must all have it. */
    private void growth() {
        Set<Long> sizes = new LinkedHashSet<>();
        List<String> grown = new ArrayList<>();
        for (TensorEdit edit : edits.values()) {
            Location stored = edit.copyOf != null ? edit.copyOf : edit.base;
            if (edit.value != null && stored != null && edit.value.shape().length > 0) {
                long rows = edit.value.shape()[0];
                if (rows != stored.info().shape()[0]) {
                    sizes.add(rows);
                    grown.add(edit.name);
                }
            }
        }
        if (grown.isEmpty()) {
            return;
        }
        for (String name : base.names()) {
            boolean vocabulary = BaseCheckpoint.isInput(name) || BaseCheckpoint.isOutput(name);
            if (vocabulary && !grown.contains(name) && base.inputEmbedding() != null) {
                problems.add(name + " keeps its rows while the adapter gives " + grown + " " + sizes
                        + " rows: the adapter must hold all embeddings of the new size");
            }
        }
        if (sizes.size() > 1) {
            problems.add("the adapters give " + grown + " different numbers of rows, " + sizes
                    + ": merge adapters of one vocabulary");
        } else {
            long size = sizes.iterator().next();
            notes.add("the vocabulary becomes " + size + " tokens: use the tokenizer of the adapter");
            configChanges.put("vocab_size", size);
        }
    }

    private void checkType(TensorEdit edit) {
        boolean adds = !edit.updates.isEmpty() || !edit.biases.isEmpty() || !edit.tokens.isEmpty();
        if (adds && !Numbers.isFloat(edit.dtype())) {
            problems.add(
                    edit.name + " is " + edit.dtype() + ", and adapters are merged into F32, BF16 and F16: if it is"
                            + " quantized, merge into the checkpoint that was quantized");
        }
    }

    /** The changed tensors by name. */
    Collection<TensorEdit> edits() {
        return edits.values();
    }

    /** What is worth knowing and no problem. */
    List<String> notes() {
        return notes;
    }

    /** Fields of {@code config.json} that the result needs. */
    Map<String, Object> configChanges() {
        return configChanges;
    }

    MergeOptions options() {
        return options;
    }
}
