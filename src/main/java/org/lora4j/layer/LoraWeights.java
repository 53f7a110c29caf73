package org.lora4j.layer;

import java.util.ArrayList;
import java.util.Collections;
import java.util.EnumMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.LoraConfig;
import org.lora4j.ops.LowRank;
import org.lora4j.ops.Tensors;

/**
 * One adapter at one layer: the factors A and B, what variants add to them, and how strongly they count.
 *
 * <p>The tensors have the shapes PEFT stores: Linear A (r, in), B (out, r); Embedding A (r, vocabulary),
 * B (dimension, r); convolution A (r, in channels, *kernel), B (out channels, r / groups, 1, ...). They are leaves of
 * the autograd graph and belong to this object until {@link #close()}.
 */
public final class LoraWeights implements AutoCloseable {
    /** What an adapter may have at a layer. */
    public enum Part {
        A,
        B,
        /** The bias on B, with {@code lora_bias}: shape (out). */
        BIAS,
        /** The norms of the rows of the adapted weight, with DoRA: shape (out), for convolutions (1, out, 1, ...). */
        MAGNITUDE;

        /** The parts a configuration asks for. */
        public static List<Part> of(LoraConfig config) {
            List<Part> parts = new ArrayList<>(List.of(A, B));
            if (config.loraBias()) {
                parts.add(BIAS);
            }
            if (config.useDora()) {
                parts.add(MAGNITUDE);
            }
            return parts;
        }
    }

    private final Map<Part, Tensor> parts = new EnumMap<>(Part.class);
    private final Tensor a;
    private final Tensor b;
    private final int rank;
    private final double initialScale;
    private double scaling;
    private Scalar scale;
    private final double dropout;
    private final List<Integer> invocationTokens;
    /** The convolution that applies A, sharing its tensor; null for layers that are plain matrices. */
    private @Nullable Module down;

    /** The norms of the adapted weight's rows, for DoRA; null otherwise. */
    private final @Nullable RowNorms norms;

    private @Nullable Factors initial;
    private @Nullable Runnable newScale;
    private boolean frozenB;
    /** The weights whose transposes these are, or null. */
    private final @Nullable LoraWeights source;

    /** As {@link #LoraWeights(LoraConfig, String, Map)} with nothing but the factors. */
    public LoraWeights(LoraConfig config, String path, Tensor a, Tensor b) {
        this(config, path, Map.of(Part.A, a, Part.B, b));
    }

    /**
     * @param config the adapter's configuration, which gives rank, scale and dropout at {@code path}
     * @param path the layer's dotted path in the base model
     * @param parts A, B and what else the adapter has, taken over by this object
     */
    public LoraWeights(LoraConfig config, String path, Map<Part, Tensor> parts) {
        this.rank = config.rankFor(path);
        this.a = Objects.requireNonNull(parts.get(Part.A), "A");
        this.b = Objects.requireNonNull(parts.get(Part.B), "B");
        if (a.size(0) % rank != 0 || a.size(0) == 0) {
            throw new IllegalArgumentException("A of layer '" + path + "' is " + Tensors.describe(a)
                    + ", but the configuration gives rank " + rank + ": use the configuration the factors came with");
        }
        this.parts.putAll(parts);
        this.parts.values().forEach(Tensors::keep);
        this.norms = parts.containsKey(Part.MAGNITUDE) ? new RowNorms() : null;
        this.initialScale = config.scale(path);
        this.scaling = initialScale;
        this.scale = Tensors.keep(new Scalar(scaling));
        this.dropout = config.loraDropout();
        this.invocationTokens = config.invocationTokens();
        this.source = null;
    }

    private LoraWeights(LoraWeights source) {
        this.source = source;
        this.rank = source.rank;
        this.a = source.a;
        this.b = source.b;
        this.norms = null;
        this.initialScale = source.initialScale;
        this.scaling = source.scaling;
        this.scale = Tensors.keep(new Scalar(scaling));
        this.dropout = source.dropout;
        this.invocationTokens = source.invocationTokens;
    }

    /**
     * The weights of an output layer (vocabulary, dimension) that shares the weight of an embedding, and with {@code
     * ensure_weight_tying} also its adapter: {@code A = B_e^T}, {@code B = A_e^T} with the same scale, so that both layers
     * have the same update. They are views of the embedding's factors, whose gradients get both layers' parts; there is
     * nothing to train here. PEFT trains the shared memory twice, through two parameters.
     *
     * @param embedding the embedding's weights, which must live as long as these
     * @throws IllegalArgumentException if they have more than factors
     */
    public static LoraWeights following(LoraWeights embedding) {
        if (!embedding.isPlain()) {
            throw new IllegalArgumentException("ensure_weight_tying ties A and B, but the adapter also has "
                    + embedding.parts.keySet() + ", which differ between an embedding and an output layer: leave out"
                    + " use_dora, or ensure_weight_tying");
        }
        return new LoraWeights(embedding);
    }

    /** Whether these are those of another layer, transposed. */
    public boolean isFollowing() {
        return source != null;
    }

    /** The factor A; see the class for shapes. */
    public Tensor a() {
        return source == null ? a : source.b().t();
    }

    /** The factor B; see the class for shapes. */
    public Tensor b() {
        return source == null ? b : source.a().t();
    }

    /** What A's gradient accumulates in, zeros if there was none; null if A does not train. */
    @Nullable
    Tensor gradientA() {
        Tensor gradient = source == null ? gradient(a) : source.gradientB();
        return source == null || gradient == null ? gradient : gradient.t();
    }

    /** Likewise of B. */
    @Nullable
    Tensor gradientB() {
        Tensor gradient = source == null ? gradient(b) : source.gradientA();
        return source == null || gradient == null ? gradient : gradient.t();
    }

    private static @Nullable Tensor gradient(Tensor leaf) {
        if (!leaf.requires_grad()) {
            return null;
        }
        Tensor gradient = leaf.mutable_grad();
        if (!gradient.defined()) {
            gradient.put(torch.zeros_like(leaf.detach()));
        }
        return gradient.detach();
    }

    /** The bias on B, or null. */
    public @Nullable Tensor bias() {
        return parts.get(Part.BIAS);
    }

    /** DoRA's magnitude, or null. */
    public @Nullable Tensor magnitude() {
        return parts.get(Part.MAGNITUDE);
    }

    /** All tensors, A and B first. */
    public Map<Part, Tensor> parts() {
        if (source != null) {
            Map<Part, Tensor> transposed = new EnumMap<>(Part.class);
            transposed.put(Part.A, a());
            transposed.put(Part.B, b());
            return transposed;
        }
        return Collections.unmodifiableMap(parts);
    }

    /** Whether the update is {@code s B A} and nothing else. */
    public boolean isPlain() {
        return source != null || parts.size() == 2;
    }

    /** The factors the adapter started with, where they hold a part of the base weight; else null. */
    public @Nullable Factors initial() {
        return initial;
    }

    /** Takes over the factors the adapter started with. */
    public void initial(Factors start) {
        Tensors.keep(start.a());
        Tensors.keep(start.b());
        initial = start;
    }

    /** B does not train, as in MiCA. */
    public void freezeB() {
        frozenB = true;
    }

    /** The tensors that train. */
    public List<Tensor> trained() {
        return parts.entrySet().stream()
                .filter(each -> !(frozenB && each.getKey() == Part.B))
                .map(Map.Entry::getValue)
                .toList();
    }

    @Nullable
    RowNorms norms() {
        return norms;
    }

    public int rank() {
        return rank;
    }

    /** The factor of B A in the forward pass: what the configuration says, times what {@link Adapter} was told since. */
    public double scale() {
        return scaling;
    }

    /** Multiplies the scale as the configuration gives it: PEFT's {@code set_scale}. */
    void setScale(double factor) {
        replaceScale(factor * initialScale);
    }

    /** Multiplies the present scale: PEFT's {@code scale_layer}. */
    void multiplyScale(double factor) {
        replaceScale(factor * scaling);
    }

    private void replaceScale(double value) {
        Scalar old = scale;
        scaling = value;
        scale = Tensors.keep(new Scalar(value));
        old.close();
        if (newScale != null) {
            newScale.run();
        }
    }

    /** Runs something whenever the scale is set. */
    void onNewScale(Runnable listener) {
        newScale = listener;
    }

    public double dropout() {
        return dropout;
    }

    /** The tokens from which on the adapter applies (aLoRA); empty if it applies everywhere. */
    public List<Integer> invocationTokens() {
        return invocationTokens;
    }

    /** The update as matrices: A (r, in), B (out, r), where a convolution's A is flattened. Views, not copies. */
    public LowRank lowRank() {
        return new LowRank(matrix(a()), matrix(b()), scaling);
    }

    Scalar scaleScalar() {
        return scale;
    }

    @Nullable
    Module down() {
        return down;
    }

    void down(Module module) {
        this.down = Tensors.keep(module);
    }

    /** Whether any of the tensors gets gradients now. */
    boolean requiresGrad() {
        return source == null ? parts.values().stream().anyMatch(Tensor::requires_grad) : source.requiresGrad();
    }

    void requiresGrad(boolean requires) {
        trained().forEach(part -> part.set_requires_grad(requires));
    }

    static Tensor matrix(Tensor factor) {
        Tensor data = factor.detach();
        return data.dim() == 2 ? data : data.flatten(1, -1);
    }

    @Override
    public void close() {
        parts.values().forEach(Tensor::close);
        scale.close();
        if (norms != null) {
            norms.close();
        }
        if (initial != null) {
            initial.a().close();
            initial.b().close();
        }
        if (down != null) {
            down.close();
        }
    }
}
