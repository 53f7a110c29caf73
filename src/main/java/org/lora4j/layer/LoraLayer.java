package org.lora4j.layer;

import java.util.List;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.LoraConfig;
import org.lora4j.ops.LowRank;
import org.lora4j.ops.Ops;
import org.lora4j.ops.Tensors;

/**
 * A frozen LibTorch module whose Java object also applies adapters.
 *
 * <p>It shares the C++ module with {@link #original()}: weights, buffers and names of the base model stay as they are.
 * A model calls {@code forward} on whichever Java object its field holds, so putting this object into the field injects
 * the adapters, and putting the original back removes them.
 */
public sealed interface LoraLayer
        permits LoraLinear,
                LoraHfConv1D,
                LoraEmbedding,
                LoraConv1d,
                LoraConv2d,
                LoraConv3d,
                LoraMultiheadAttention,
                LoraAttentionOutput,
                LoraParameter {
    /** The dotted path of the module in the base model. */
    default String path() {
        return adapters().path();
    }

    /** The Java object this layer stands in for. */
    Module original();

    /** PEFT's name of the layer type, such as {@code lora.Linear}. */
    String type();

    /** The weight of the base module, in the module's own layout. */
    Tensor weight();

    /** The bias of the base module, which may be null or undefined if it has none. */
    @Nullable
    Tensor bias();

    /** The outputs of the layer, or for an embedding its dimension: the rows of {@link #matrix}. */
    long outputs();

    /** A vector (outputs) in the shape that broadcasts over the layer's output. */
    default Tensor perOutput(Tensor vector) {
        return vector.flatten();
    }

    /** The adapters of this layer. */
    LayerAdapters adapters();

    /**
     * A view of a weight as the matrix (out, in) that B A is added to.
     *
     * @throws UnsupportedOperationException if an adapter cannot be merged into this kind of layer
     */
    Tensor matrix(Tensor weight);

    /** The output of the base module as it is now, without adapters but those merged into its weight. */
    Tensor base(Tensor x);

    /** B (A x) without the scale, shape of the module's output. Records gradients. */
    Tensor delta(LoraWeights weights, Tensor x);

    /** True if the output's last dimension is {@code W x}, so that rows can be updated one by one. */
    boolean isMatrix();

    /** The shape of A at a rank; see {@link LoraWeights}. */
    long[] shapeA(int rank);

    /** The shape of B at a rank; see {@link LoraWeights}. */
    long[] shapeB(int rank);

    /** The shape of a part of an adapter with this rank. */
    default long[] shape(LoraWeights.Part part, int rank) {
        return switch (part) {
            case A -> shapeA(rank);
            case B -> shapeB(rank);
            case BIAS -> new long[] {outputs()};
            case MAGNITUDE -> shapeMagnitude();
        };
    }

    /** The shape of DoRA's magnitude. */
    default long[] shapeMagnitude() {
        return Tensors.shape(perOutput(weight().new_empty(outputs())));
    }

    /** Where PEFT's files have the layer's tensors: its path, but for layers inside another that is adapted too. */
    default String filePath() {
        return path();
    }

    /** The path that decides rank and scale: the module a configuration targets, of which this layer may be a part. */
    default String configPath() {
        return path();
    }

    /**
     * Checks what a configuration asks for beyond plain LoRA.
     *
     * @throws IllegalArgumentException naming the field, if this kind of layer cannot do it
     */
    default void check(LoraConfig config) {
        if (!config.invocationTokens().isEmpty() && !isMatrix()) {
            throw new IllegalArgumentException(
                    "alora_invocation_tokens is " + config.invocationTokens() + ", but layer '"
                            + path() + "' is a " + type()
                            + ", and only linear layers know which token a vector belongs to: leave "
                            + "it out of targetModules");
        }
    }

    /** The layers within this one that are always adapted with it; they have paths and adapters of their own. */
    default List<LoraLayer> parts() {
        return List.of();
    }

    /**
     * Whether another layer applies this one's adapters, or they are in a parameter that its module uses: it stands in for no
     * object of the model then.
     */
    default boolean isPart() {
        return false;
    }

    /** How many times an update counts: once, but for a defect of PEFT that is asked for. */
    default int repeats() {
        return 1;
    }

    /** New factors as {@code config.initLoraWeights()} says, of {@link #factorType()}. */
    default LoraWeights newWeights(LoraConfig config) {
        return Init.weights(this, config);
    }

    /**
     * A new adapter here.
     *
     * @param given where it starts, for {@code eva}, {@code corda} and {@code lora_ga}; null for the others
     * @throws IllegalArgumentException if the layer cannot start so
     */
    default Fresh fresh(LoraConfig config, @Nullable Start given) {
        return Init.fresh(this, config, given);
    }

    /** The type of the factors: float32 whatever the weight, or float64 beside a float64 weight. */
    default torch.ScalarType factorType() {
        return Tensors.type(weight()) == torch.ScalarType.Double ? torch.ScalarType.Double : torch.ScalarType.Float;
    }

    /**
     * Replaces the weight by one with the named adapters merged in, with one rounding: {@code W = round(W0 + sum_i s_i B_i
     * A_i)}, W0 being the weight without any adapter, whose data is kept until {@link #unmerge} or {@link #keepMerged}. DoRA
     * rescales the rows of what was merged before it; a bias on B goes into the base bias.
     *
     * @param names the adapters that are merged afterwards, in order; those this layer lacks do not count
     * @param safe whether to refuse a result that is not finite
     * @throws IllegalStateException if an adapter has a bias on B and the base layer has none; nothing changes then
     * @throws ArithmeticException if {@code safe} and the merged weight has a NaN or infinity; nothing changes then
     */
    default void merge(List<String> names, boolean safe) {
        adapters().merge(this, names, safe);
    }

    /** Puts the weight back as it was before the first merge, bit for bit. */
    default void unmerge() {
        adapters().unmerge(this);
    }

    /** Makes the merged weight the base weight: the data of the old one is released. */
    default void keepMerged() {
        adapters().keepMerged();
    }

    /** Adds the updates s B A of adapters without magnitude to a weight in the module's own layout, with one rounding. */
    default void addTo(Tensor weight, List<LoraWeights> updates) {
        Tensor matrix = matrix(weight);
        List<LowRank> table = updates.stream().map(LoraWeights::lowRank).toList();
        for (int i = 0; i < repeats(); i++) {
            Ops.current().merge(matrix, table);
        }
    }

    /**
     * Brings the weight in line with the adapters in use, for layers whose weight they are part of while they are active:
     * after the active adapters, their factors or scales have changed.
     */
    default void refresh() {}

    /** Takes the adapters in use out of the weight, bit for bit, until the next {@link #refresh}. */
    default void suspend() {}

    /** The change {@code s B A} that an adapter without magnitude makes to the {@link #matrix} of the weight, in its type. */
    default Tensor update(LoraWeights weights) {
        LowRank update = weights.lowRank();
        return update.b().matmul(update.a()).mul(new Scalar(update.scale()));
    }

    /**
     * The change an adapter makes to the weight, as a matrix: {@code scale * B A}, shape (out, in), in the adapter's
     * type.
     */
    default Tensor deltaMatrix(String adapter) {
        LoraWeights weights = adapters().get(adapter);
        if (weights.magnitude() != null) {
            Tensor base = adapters().unmergedWeight(this);
            return Merging.dora(this, base, weights).sub(matrix(base));
        }
        return update(weights);
    }
}
