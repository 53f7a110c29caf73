package org.lora4j.layer;

import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.LoraConfig;
import org.lora4j.ops.LowRank;
import org.lora4j.ops.Tensors;

/**
 * One adapter at one layer: the factors A and B and how strongly they count.
 *
 * <p>The factors have the shapes PEFT stores: Linear A (r, in), B (out, r); Embedding A (r, vocabulary),
 * B (dimension, r); convolution A (r, in channels, *kernel), B (out channels, r / groups, 1, ...). They are leaves of
 * the autograd graph and belong to this object until {@link #close()}.
 */
public final class LoraWeights implements AutoCloseable {
    private final Tensor a;
    private final Tensor b;
    private final int rank;
    private final double initialScale;
    private double scaling;
    private Scalar scale;
    private final double dropout;
    /** The convolution that applies A, sharing its tensor; null for layers that are plain matrices. */
    private @Nullable Module down;

    /**
     * @param config the adapter's configuration, which gives rank, scale and dropout at {@code path}
     * @param path the layer's dotted path in the base model
     * @param a the factor A, taken over by this object
     * @param b the factor B, taken over by this object
     */
    public LoraWeights(LoraConfig config, String path, Tensor a, Tensor b) {
        this.rank = config.rankFor(path);
        if (a.size(0) != rank) {
            throw new IllegalArgumentException("A of layer '" + path + "' is " + Tensors.describe(a)
                    + ", but the configuration gives rank " + rank + ": use the configuration the factors came with");
        }
        this.a = Tensors.keep(a);
        this.b = Tensors.keep(b);
        this.initialScale = config.scale(path);
        this.scaling = initialScale;
        this.scale = Tensors.keep(new Scalar(scaling));
        this.dropout = config.loraDropout();
    }

    /** The factor A; see the class for shapes. */
    public Tensor a() {
        return a;
    }

    /** The factor B; see the class for shapes. */
    public Tensor b() {
        return b;
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
    }

    public double dropout() {
        return dropout;
    }

    /** The update as matrices: A (r, in), B (out, r), where a convolution's A is flattened. Views, not copies. */
    public LowRank lowRank() {
        return new LowRank(matrix(a), matrix(b), scaling);
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

    void requiresGrad(boolean requires) {
        a.set_requires_grad(requires);
        b.set_requires_grad(requires);
    }

    private static Tensor matrix(Tensor factor) {
        Tensor data = factor.detach();
        return data.dim() == 2 ? data : data.flatten(1, -1);
    }

    @Override
    public void close() {
        a.close();
        b.close();
        scale.close();
        if (down != null) {
            down.close();
        }
    }
}
