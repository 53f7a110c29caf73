package org.lora4j.model.causal;

import static org.bytedeco.pytorch.global.torch.arange;
import static org.bytedeco.pytorch.global.torch.cat;
import static org.bytedeco.pytorch.global.torch.pow;

import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Device;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.jspecify.annotations.Nullable;
import org.lora4j.ops.Tensors;

/**
 * Cosines and sines of rotary position embeddings (Su et al. 2021, the half-split layout of Hugging Face), computed in
 * float32 once and kept in the type of the hidden states.
 *
 * <p>A head x is turned to {@code x * cos + roll(x, D / 2) * sin}, where the first half of {@code sin} carries the minus
 * sign of the rotation.
 */
final class RotaryTable {
    private static final long FIRST_LENGTH = 1024;

    private final RopeScaling scaling;
    private final int headDim;
    private @Nullable Angles angles;

    RotaryTable(RopeScaling scaling, int headDim) {
        this.scaling = scaling;
        this.headDim = headDim;
    }

    /** Cosine and sine, each of shape (length, headDim). */
    record Angles(Tensor cos, Tensor sin, long length, ScalarType type, Device device) {
        private boolean serves(long length, ScalarType type, Device device) {
            return this.length >= length && this.type == type && this.device.equals(device);
        }
    }

    /** Angles of at least the positions 0 to length - 1, in the type and on the device of {@code like}. */
    synchronized Angles upTo(long length, Tensor like) {
        ScalarType type = Tensors.type(like);
        Device device = like.device();
        Angles current = angles;
        if (current == null || !current.serves(length, type, device)) {
            long rounded = FIRST_LENGTH;
            while (rounded < length) {
                rounded *= 2;
            }
            // The old tensors are left to the collector: another thread may be reading them.
            current = compute(rounded, type, device);
            angles = current;
        }
        return current;
    }

    private Angles compute(long length, ScalarType type, Device device) {
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            Tensor frequencies = Tensor.create(scaling.scale(frequencies()));
            Tensor positions = arange(new Scalar(length)).to(ScalarType.Float).unsqueeze(1);
            Tensor turn = positions.mul(frequencies);
            Tensor cos = turn.cos();
            Tensor sin = turn.sin();
            cos = cat(new TensorVector(cos, cos), 1);
            sin = cat(new TensorVector(sin.neg(), sin), 1);
            return new Angles(
                    Tensors.keep(cos.to(device, type)),
                    Tensors.keep(sin.to(device, type)),
                    length,
                    type,
                    Tensors.keep(new Device(device)));
        }
    }

    /** {@code theta^(-2j / D)} for j from 0 to D / 2 - 1, by LibTorch's float32 power. */
    private float[] frequencies() {
        Tensor exponents = arange(new Scalar(0), new Scalar(headDim), new Scalar(2))
                .to(ScalarType.Float)
                .div(new Scalar((double) headDim));
        Tensor power = pow(new Scalar(scaling.theta()), exponents).reciprocal();
        float[] values = new float[headDim / 2];
        new FloatPointer(power.data_ptr_float()).get(values);
        return values;
    }

    /** Turns heads: {@code x} of shape (B, T, heads, D), {@code cos} and {@code sin} broadcastable to it. */
    static Tensor turn(Tensor x, Tensor cos, Tensor sin, int headDim) {
        Tensor rolled = x.roll(new long[] {headDim / 2}, -1);
        return x.mul(cos).add_(rolled.mul_(sin));
    }
}
