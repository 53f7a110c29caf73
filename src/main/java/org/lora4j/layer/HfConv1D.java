package org.lora4j.layer;

import org.bytedeco.javacpp.Pointer;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.lora4j.ops.Tensors;

/** The linear layer of GPT-2 in transformers, there called {@code Conv1D}: {@code y = x W + b} with W (in, out). */
public class HfConv1D extends Module {
    private final Tensor weight;
    private final Tensor bias;

    /** Weights start as N(0, 0.02), the bias as zeros, as in transformers. */
    public HfConv1D(long in, long out) {
        // register_parameter returns a place in a vector that the next call may move: keep the tensors instead.
        weight = Tensors.keep(torch.randn(in, out).mul_(new Scalar(0.02)));
        bias = Tensors.keep(torch.zeros(out));
        register_parameter("weight", weight);
        register_parameter("bias", bias);
    }

    /** A second Java object for the module behind {@code other}. */
    HfConv1D(HfConv1D other) {
        super((Pointer) other);
        weight = other.weight;
        bias = other.bias;
    }

    /** W, shape (in, out). */
    public Tensor weight() {
        return weight;
    }

    /** b, shape (out). */
    public Tensor bias() {
        return bias;
    }

    /**
     * @param x shape (..., in)
     * @return shape (..., out)
     */
    public Tensor forward(Tensor x) {
        return torch.linear(x, weight.t(), bias);
    }
}
