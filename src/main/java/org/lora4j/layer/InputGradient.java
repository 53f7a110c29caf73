package org.lora4j.layer;

import java.lang.ref.WeakReference;
import java.util.Queue;
import java.util.concurrent.ConcurrentLinkedQueue;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorBase;
import org.bytedeco.pytorch.TensorTensorHook;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.jspecify.annotations.Nullable;
import org.lora4j.ops.Tensors;

/**
 * The gradient of a quantized layer's input, {@code dx = dy W}, with the weight built when the backward pass needs it.
 *
 * <p>LibTorch's own operations would keep the dense weight from the forward pass. A hook may replace a gradient only by one
 * of the same shape, so the input is widened by as many zeros as the layer has outputs, and the output added to those: the
 * gradient that arrives has the output's gradient in its last columns, the one that leaves has the input's in its first.
 *
 * <p>There is one such object for a layer and all its passes. LibTorch holds no reference to it, and an output may outlive
 * the layer: the small objects are therefore kept for good, and know the layer only as long as it lives.
 */
final class InputGradient extends TensorTensorHook {
    /** What this thread has returned last. LibTorch takes a copy of the handle only after the call. */
    private static final ThreadLocal<@Nullable Tensor> RETURNED = new ThreadLocal<>();

    private static final Queue<InputGradient> ALL = new ConcurrentLinkedQueue<>();

    private final WeakReference<QuantizedLinear> layer;

    InputGradient(QuantizedLinear layer) {
        this.layer = new WeakReference<>(layer);
        ALL.add(Tensors.keep(this));
    }

    /** Forgets the layer. */
    void end() {
        layer.clear();
    }

    /**
     * @param x the layer's input (..., in), which requires a gradient
     * @param y its output (..., out), which records none
     * @return the output, through which gradients reach {@code x}
     */
    Tensor attach(Tensor x, Tensor y) {
        Tensor carrier = torch.constant_pad_nd(x, 0, y.size(-1));
        carrier.register_hook(this);
        return carrier.narrow(-1, x.size(-1), y.size(-1)).add(y);
    }

    @Override
    public TensorBase call(TensorBase gradient) {
        QuantizedLinear linear = layer.get();
        if (linear == null) {
            throw new IllegalStateException("backward through a quantized layer that is closed: run it before the model"
                    + " is closed or dequantized");
        }
        Tensor last = RETURNED.get();
        if (last != null) {
            last.close();
        }
        try (PointerScope scope = new PointerScope()) {
            Tensor dy = new Tensor(gradient).narrow(-1, linear.inFeatures(), linear.outFeatures());
            Tensor dx = dy.matmul(linear.dequantized(Tensors.type(dy)));
            Tensor result = Tensors.keep(torch.cat(new TensorVector(dx, dy), -1));
            RETURNED.set(result);
            return result;
        }
    }
}
