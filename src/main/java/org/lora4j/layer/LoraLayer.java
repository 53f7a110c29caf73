package org.lora4j.layer;

import java.util.List;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.lora4j.config.LoraConfig;
import org.lora4j.ops.LowRank;
import org.lora4j.ops.Tensors;

/**
 * A frozen LibTorch module whose Java object also applies adapters.
 *
 * <p>It shares the C++ module with {@link #original()}: weights, buffers and names of the base model stay as they are.
 * A model calls {@code forward} on whichever Java object its field holds, so putting this object into the field injects
 * the adapters, and putting the original back removes them.
 */
public sealed interface LoraLayer permits LoraLinear, LoraHfConv1D, LoraEmbedding, LoraConv1d, LoraConv2d, LoraConv3d {
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

    /** The adapters of this layer. */
    LayerAdapters adapters();

    /**
     * A view of a weight as the matrix (out, in) that B A is added to.
     *
     * @throws UnsupportedOperationException if an adapter cannot be merged into this kind of layer
     */
    Tensor matrix(Tensor weight);

    /** B (A x) without the scale, shape of the module's output. Records gradients. */
    Tensor delta(LoraWeights weights, Tensor x);

    /** True if the output's last dimension is {@code W x}, so that rows can be updated one by one. */
    boolean isMatrix();

    /** The shape of A at a rank; see {@link LoraWeights}. */
    long[] shapeA(int rank);

    /** The shape of B at a rank; see {@link LoraWeights}. */
    long[] shapeB(int rank);

    /** New factors as {@code config.initLoraWeights()} says, of {@link #factorType()}. */
    default LoraWeights newWeights(LoraConfig config) {
        return Init.weights(this, config);
    }

    /** The type of the factors: float32 whatever the weight, or float64 beside a float64 weight. */
    default torch.ScalarType factorType() {
        return Tensors.type(weight()) == torch.ScalarType.Double ? torch.ScalarType.Double : torch.ScalarType.Float;
    }

    /**
     * Replaces the weight by one with the named adapters merged in, with one rounding: {@code W = round(W0 + sum_i s_i B_i
     * A_i)}, W0 being the weight without any adapter, whose data is kept until {@link #unmerge} or {@link #keepMerged}.
     *
     * @param names the adapters that are merged afterwards, in order; those this layer lacks do not count
     * @param safe whether to refuse a result that is not finite
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

    /**
     * The change an adapter makes to the weight, as a matrix: {@code scale * B A}, shape (out, in), in the adapter's
     * type.
     */
    default Tensor deltaMatrix(String adapter) {
        LowRank update = adapters().get(adapter).lowRank();
        return update.b().matmul(update.a()).mul(new Scalar(update.scale()));
    }
}
