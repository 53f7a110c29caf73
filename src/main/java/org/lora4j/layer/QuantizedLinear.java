package org.lora4j.layer;

import java.util.Arrays;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Device;
import org.bytedeco.pytorch.GradMode;
import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.jspecify.annotations.Nullable;
import org.lora4j.ops.QuantizedWeight;
import org.lora4j.ops.Scopes;
import org.lora4j.ops.Tensors;

/**
 * A linear layer whose weight is held in 4 or 8 bits: {@code y = dequantize(W) x + b}.
 *
 * <p>It is made over the C++ module of a {@code LinearImpl} and takes that object's place. The module's {@code weight}
 * becomes the packed elements: frozen, of another shape and type, with {@code options()} still giving the true sizes. Each
 * pass builds the weight in the type it computes in and frees it again, and so does each backward pass, so that no
 * activation holds one. Gradients reach the input and the bias, never the weight.
 *
 * <p>{@code to(device)} of the module moves the layer; {@code to(type)} would convert the packed bytes and is an error at
 * the next pass. {@code forward} may be called from several threads.
 */
public final class QuantizedLinear extends LinearImpl {
    private final @Nullable ScalarType computeType;
    private final InputGradient gradient;
    private QuantizedWeight quantized;
    /** A full weight to compute with instead, such as a merged one; null for none. */
    private volatile @Nullable Tensor held;

    private QuantizedLinear(LinearImpl original, QuantizedWeight quantized, @Nullable ScalarType computeType) {
        super((Pointer) original);
        this.computeType = computeType;
        this.quantized = quantized.keep();
        this.gradient = new InputGradient(this);
        Tensor weight = weight();
        weight.set_requires_grad(false);
        weight.set_data(quantized.packed());
    }

    /**
     * Quantizes a layer. Its full weight is released, and the object passed must not be called any more.
     *
     * @return a layer that belongs to no {@code PointerScope}: close it to free it
     * @throws IllegalArgumentException if it is quantized already, has adapters, or its weight is no Float, BFloat16 or Half
     * @throws ArithmeticException if its weight holds NaN or infinity; nothing changes then
     */
    public static QuantizedLinear of(LinearImpl linear, QuantizationOptions options) {
        checkPlain(linear);
        try (PointerScope scope = new PointerScope()) {
            QuantizedWeight weight = options.quantize(linear.weight());
            return Tensors.keep(new QuantizedLinear(linear, weight, options.computeType()));
        }
    }

    /**
     * A layer with a weight that is quantized already, such as one read from a file. The weight the layer has is released,
     * and the object passed must not be called any more.
     *
     * @param linear a layer of the weight's sizes, as its {@code options()} state them
     * @param weight the layer closes it
     * @param computeType the type to compute in, or null for the input's
     * @return a layer that belongs to no {@code PointerScope}: close it to free it
     * @throws IllegalArgumentException if the layer is quantized already, has adapters, or is of other sizes
     */
    public static QuantizedLinear of(LinearImpl linear, QuantizedWeight weight, @Nullable ScalarType computeType) {
        checkPlain(linear);
        long in = linear.options().in_features().get();
        long out = linear.options().out_features().get();
        if (weight.rows() != out || weight.columns() != in) {
            throw new IllegalArgumentException("the quantized weight is (" + weight.rows() + ", " + weight.columns()
                    + "), but the layer takes " + in + " features and puts out " + out
                    + ": pass the weight of this layer");
        }
        return Tensors.keep(new QuantizedLinear(linear, weight, computeType));
    }

    private static void checkPlain(LinearImpl linear) {
        if (linear instanceof QuantizedLinear) {
            throw new IllegalArgumentException("the layer is quantized already");
        }
        if (linear instanceof LoraLayer layer) {
            throw new IllegalArgumentException(
                    "layer '" + layer.path() + "' has adapters: quantize the model first and add adapters then");
        }
    }

    public long inFeatures() {
        return quantized.columns();
    }

    public long outFeatures() {
        return quantized.rows();
    }

    /** The type the layer computes in, or null for the type of its input. */
    public @Nullable ScalarType computeType() {
        return computeType;
    }

    /** The weight, on the device the module is on. It belongs to the layer. */
    public synchronized QuantizedWeight quantized() {
        try (PointerScope scope = new PointerScope()) {
            Tensor weight = weight();
            Tensor packed = quantized.packed();
            if (Tensors.type(weight) != Tensors.type(packed)
                    || !Arrays.equals(Tensors.shape(weight), Tensors.shape(packed))) {
                throw new IllegalStateException("the packed weight has become " + Tensors.describe(weight) + " from "
                        + Tensors.describe(packed)
                        + ": do not call to(type) on a module with quantized layers; choose their computeType instead");
            }
            Device device = weight.device();
            if (!device.equals(packed.device())) {
                QuantizedWeight old = quantized;
                quantized = old.on(weight.detach()).keep();
                old.close();
            }
            return quantized;
        }
    }

    /**
     * Gives the layer another weight of the same sizes and kind, as after a merge.
     *
     * @param next the layer closes it
     * @return the weight it had, which the caller closes
     * @throws IllegalArgumentException if it is of other sizes or bits
     */
    public synchronized QuantizedWeight exchange(QuantizedWeight next) {
        QuantizedWeight old = quantized();
        if (next.rows() != old.rows() || next.columns() != old.columns() || next.getClass() != old.getClass()) {
            throw new IllegalArgumentException("the layer holds (" + old.rows() + ", " + old.columns() + ") in "
                    + old.description() + ", not (" + next.rows() + ", " + next.columns() + ") in "
                    + next.description() + ": pass a weight of this layer");
        }
        quantized = next.keep();
        weight().set_data(next.packed());
        return old;
    }

    /**
     * Computes with a full weight from now on, until this is called with null; the quantized one is kept.
     *
     * @param weight (out, in), taken over
     */
    void hold(@Nullable Tensor weight) {
        Tensor old = held;
        held = weight == null ? null : Tensors.keep(weight);
        if (old != null) {
            old.close();
        }
    }

    /** A plain layer over the same module with the full weight this one holds, which is closed; itself if it holds none. */
    public LinearImpl settled() {
        Tensor full = held;
        if (full == null) {
            return this;
        }
        LinearImpl plain = toLinear(full);
        close();
        return plain;
    }

    /** The weight the layer computes with, (out, in), in the caller's scope. */
    public Tensor dequantized(ScalarType type) {
        Tensor full = held;
        return full == null ? quantized().dequantize(type) : full.detach().to(type);
    }

    /**
     * How far the quantized weight is from the one it was made of: the Frobenius norm of the difference.
     *
     * @param original (out, in)
     * @throws IllegalArgumentException if it has another shape
     */
    public double quantizationError(Tensor original) {
        return QuantizedMerge.error(quantized(), original);
    }

    /** Bytes of the quantized weight and the bias. */
    public long bytes() {
        try (PointerScope scope = new PointerScope()) {
            Tensor bias = bias();
            return quantized().bytes() + (bias.defined() ? bias.nbytes() : 0);
        }
    }

    /**
     * Gives the C++ module a full weight again. This object must not be called any more, and is closed.
     *
     * @param weight (out, in), which becomes the module's, frozen
     * @return a plain layer over the same module
     */
    public LinearImpl toLinear(Tensor weight) {
        if (weight.dim() != 2 || weight.size(0) != outFeatures() || weight.size(1) != inFeatures()) {
            throw new IllegalArgumentException("the weight is " + Tensors.describe(weight) + " but must be ("
                    + outFeatures() + ", " + inFeatures() + "): pass one of this layer");
        }
        LinearImpl plain = Tensors.keep(new LinearImpl((Pointer) this));
        plain.weight().set_data(weight.detach());
        return plain;
    }

    /**
     * The layer's output.
     *
     * @param x (..., in)
     * @return (..., out), of the input's type
     */
    @Override
    public Tensor forward(Tensor x) {
        QuantizedWeight weight = quantized();
        if (x.dim() == 0 || x.size(-1) != weight.columns()) {
            throw new IllegalArgumentException("the input is " + Tensors.describe(x) + ", but the layer takes (..., "
                    + weight.columns() + "): pass the features it was made for");
        }
        ScalarType type = Tensors.type(x);
        ScalarType compute = computeType == null ? type : computeType;
        return Scopes.within(() -> output(x.to(compute)).to(type));
    }

    private Tensor output(Tensor x) {
        Tensor bias = bias();
        Tensor typedBias = bias.defined() ? bias.to(Tensors.type(x)) : bias;
        boolean recordsBias = GradMode.is_enabled() && bias.defined() && bias.requires_grad();
        boolean addsBias = bias.defined() && !recordsBias;
        Tensor y;
        try (NoGradGuard noGrad = new NoGradGuard();
                Tensor dense = dequantized(Tensors.type(x))) {
            y = addsBias ? torch.linear(x, dense, typedBias) : torch.linear(x, dense);
        }
        if (GradMode.is_enabled() && x.requires_grad()) {
            y = gradient.attach(x, y);
        }
        return recordsBias ? y.add(typedBias) : y;
    }

    /**
     * Frees the quantized weight. The C++ module stays with the model. A backward pass through an earlier output is an
     * error afterwards.
     */
    @Override
    public synchronized void close() {
        gradient.end();
        quantized.close();
        hold(null);
    }
}
