package org.lora4j.layer;

import java.nio.ByteBuffer;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.EvaConfig;
import org.lora4j.config.LoraConfig;
import org.lora4j.ops.Tensors;

/**
 * Explained variance adaptation (arXiv:2410.07170), PEFT's {@code init_lora_weights="eva"}: A starts with the principal
 * components of the layer's inputs, B as zero, and layers whose inputs a few components explain give ranks to the others.
 *
 * <p>The model is run on batches without adapters. In each, every layer that {@link #wants} names gets {@link #add}; then
 * comes {@link #endBatch}. The first batch comes twice: once to see which layers share their inputs, which are then
 * decomposed once. After the last batch the first comes again, until {@link #endBatch} says that all is found.
 */
public final class EvaSearch implements AutoCloseable {
    private static final int SLICE_BYTES = 1 << 24;

    /** A part of a layer's variance. */
    private record Share(String path, float part) {}

    private final EvaConfig settings;
    private final Map<String, Integer> budgets = new LinkedHashMap<>();
    /** The most components of each layer. */
    private final Map<String, Integer> counts = new LinkedHashMap<>();

    private final Map<String, String> digests = new HashMap<>();
    /** The layer whose components a layer uses: itself, or an earlier one with the same inputs. */
    private final Map<String, String> sources = new LinkedHashMap<>();

    private final Map<String, IncrementalPca> found = new LinkedHashMap<>();
    private Map<String, Integer> ranks = new LinkedHashMap<>();

    /**
     * @param config gives {@code eva_config} and the rank of each layer
     * @param widths the adapted linear layers in the model's order, with the width of their inputs
     */
    public EvaSearch(LoraConfig config, Map<String, Long> widths) {
        settings = EvaConfig.of(config);
        widths.forEach((path, width) -> {
            int rank = config.rankFor(path);
            if (rank > width) {
                throw new IllegalArgumentException("eva needs a rank of at most the width of the input, but at layer '"
                        + path + "' the rank is " + rank + " and the width " + width + ": lower r or rankPattern");
            }
            budgets.put(path, rank);
            counts.put(path, (int) Math.min(width, Math.rint(rank * settings.rho())));
        });
        if (budgets.isEmpty()) {
            throw new IllegalArgumentException("eva found no linear layer to start: check targetModules");
        }
        ranks.putAll(counts);
    }

    /**
     * The rows of a layer's input that count: those the attention mask has 1 for and, if the settings say so, whose label
     * is not the mask value.
     *
     * @param input shape (batch, tokens, in), or any (..., in) without masks
     * @param attentionMask shape (batch, tokens), or null for all ones
     * @param labels shape (batch, tokens), or null
     * @return shape (n, in)
     */
    public static Tensor rows(
            Tensor input, @Nullable Tensor attentionMask, @Nullable Tensor labels, EvaConfig settings) {
        Tensor rows = input.detach().reshape(-1, input.size(-1));
        Tensor mask = attentionMask == null ? null : attentionMask.to(torch.ScalarType.Bool);
        if (labels != null && settings.useLabelMask()) {
            Tensor labelled = labels.ne(new org.bytedeco.pytorch.Scalar(settings.labelMaskValue()));
            mask = mask == null ? labelled : mask.logical_and(labelled);
        }
        if (mask == null) {
            return rows;
        }
        if (mask.numel() != rows.size(0)) {
            throw new IllegalArgumentException("the mask is " + Tensors.describe(mask) + ", but the layer's input "
                    + Tensors.describe(input) + ": adapt layers that see one row per token, or leave the masks out");
        }
        return rows.index_select(0, mask.reshape(-1).nonzero().view(-1).to(input.device(), torch.ScalarType.Long));
    }

    /** Whether a layer's input is needed in this batch. */
    public boolean wants(String path) {
        if (sources.isEmpty()) {
            return budgets.containsKey(path);
        }
        IncrementalPca pca = found.get(path);
        return pca != null && !pca.converged(ranks.getOrDefault(path, 0));
    }

    /**
     * Takes the input of a layer in this batch into account. Fewer rows than the layer may have components are passed over.
     *
     * @param rows shape (n, in), as {@link #rows} gives them
     */
    public void add(String path, Tensor rows) {
        if (sources.isEmpty()) {
            digests.put(path, digest(rows));
        } else if (wants(path)) {
            component(path).add(rows);
        }
    }

    /**
     * Ends a batch.
     *
     * @return whether the components of every layer are found
     * @throws IllegalStateException if the first batch missed a layer
     */
    public boolean endBatch() {
        if (sources.isEmpty()) {
            group();
            return false;
        }
        if (found.values().stream().allMatch(IncrementalPca::started)) {
            ranks = distribute();
        }
        return found.keySet().stream().noneMatch(this::wants);
    }

    /** The layers whose components are not found yet. */
    public Set<String> missing() {
        Set<String> missing = new LinkedHashSet<>();
        budgets.keySet().stream()
                .filter(path -> wants(sources.getOrDefault(path, path)))
                .forEach(missing::add);
        return missing;
    }

    /** The rank of every layer, 0 where it needs no adapter. They sum up to what the configuration gives. */
    public Map<String, Integer> ranks() {
        return Map.copyOf(ranks);
    }

    /**
     * The start of a layer: A the components, B zero, the base as it is.
     *
     * @param weight the layer's weight, shape (out, in), for shape and type alone
     * @throws IllegalStateException if the components are not found
     */
    public Start start(String path, Tensor weight) {
        int rank = ranks.getOrDefault(path, 0);
        String source = sources.get(path);
        if (source == null || rank == 0 || !component(source).converged(rank)) {
            throw new IllegalStateException("eva has no components for layer '" + path + "' at rank " + rank
                    + ": run batches until endBatch returns true, and leave layers of rank 0 out");
        }
        torch.ScalarType type = Start.working(weight);
        Tensor a = component(source).components(rank, settings.whiten()).to(weight.device(), type);
        return new Start(
                a,
                torch.zeros(new long[] {weight.size(0), rank}, new TensorOptions(type))
                        .to(weight.device(), type),
                null);
    }

    private IncrementalPca component(String path) {
        IncrementalPca pca = found.get(path);
        if (pca == null) {
            throw new IllegalArgumentException("eva decomposes no layer '" + path + "', only " + found.keySet());
        }
        return pca;
    }

    private void group() {
        if (!digests.keySet().equals(budgets.keySet())) {
            Set<String> missed = new LinkedHashSet<>(budgets.keySet());
            missed.removeAll(digests.keySet());
            throw new IllegalStateException(
                    "the batch did not reach the layers " + missed + ": exclude them, or run the whole model");
        }
        Map<String, String> first = new HashMap<>();
        Map<String, String> same = new LinkedHashMap<>();
        for (String path : budgets.keySet()) {
            String source = first.putIfAbsent(digests.get(path), path);
            if (source == null) {
                sources.put(path, path);
            } else {
                same.put(path, source);
                counts.merge(source, counts.get(path), Math::max);
            }
        }
        same.forEach((path, source) -> counts.put(path, counts.get(source)));
        sources.keySet().forEach(path -> found.put(path, new IncrementalPca(counts.get(path), settings.tau())));
        sources.putAll(same);
        ranks = new LinkedHashMap<>(counts);
        digests.clear();
    }

    /** Gives the ranks to the components that explain most; of two layers with the same inputs to the first. */
    private Map<String, Integer> distribute() {
        List<Share> shares = new ArrayList<>();
        sources.forEach((path, source) -> {
            for (float part : component(source).explained()) {
                shares.add(new Share(path, part));
            }
        });
        shares.sort(Comparator.comparing(Share::part).reversed());
        int budget = budgets.values().stream().mapToInt(Integer::intValue).sum();
        Map<String, Integer> given = new LinkedHashMap<>();
        sources.keySet().forEach(path -> given.put(path, 0));
        shares.stream().limit(budget).forEach(share -> given.merge(share.path(), 1, Integer::sum));
        sources.forEach((path, source) -> {
            int own = given.get(path);
            int first = given.get(source);
            if (first < own) {
                given.put(source, own);
                given.put(path, first);
            }
        });
        return given;
    }

    /** Equal for equal rows. */
    private static String digest(Tensor rows) {
        try (Tensor contiguous = rows.detach().cpu().contiguous()) {
            MessageDigest digest = MessageDigest.getInstance("SHA-256");
            long bytes = contiguous.nbytes();
            for (long begin = 0; begin < bytes; begin += SLICE_BYTES) {
                long end = Math.min(bytes, begin + SLICE_BYTES);
                ByteBuffer slice = new BytePointer(contiguous.data_ptr())
                        .position(begin)
                        .limit(end)
                        .asByteBuffer();
                digest.update(slice);
            }
            return Tensors.describe(rows) + HexFormat.of().formatHex(digest.digest());
        } catch (NoSuchAlgorithmException e) {
            throw new IllegalStateException(e);
        }
    }

    @Override
    public void close() {
        found.values().forEach(IncrementalPca::close);
    }
}
