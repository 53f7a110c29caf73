package org.lora4j.layer;

import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.FunctionPreHook;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.ops.Tensors;

/**
 * Gives an autograd node the dense weight of a quantized layer while the node runs, so that the graph holds none in
 * between: the tensor the node keeps has no elements but then.
 */
final class Rebuild extends FunctionPreHook {
    private final QuantizedLinear layer;
    private final Tensor transposed;
    private final ScalarType type;

    /**
     * @param transposed the weight as the node keeps it, (in, out); emptied here
     */
    Rebuild(QuantizedLinear layer, Tensor transposed) {
        this.layer = layer;
        this.transposed = Tensors.keep(transposed);
        this.type = Tensors.type(transposed);
        forget();
    }

    @Override
    public TensorVector apply(TensorVector gradients) {
        try (PointerScope scope = new PointerScope()) {
            transposed.set_data(layer.dequantized(type).t());
        }
        return gradients;
    }

    /** Frees the dense weight. */
    void forget() {
        try (PointerScope scope = new PointerScope()) {
            transposed.set_data(transposed.new_empty(0));
        }
    }

    void free() {
        transposed.close();
    }
}
