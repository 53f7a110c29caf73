package org.lora4j.layer;

import java.util.List;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.FunctionPostHook;
import org.bytedeco.pytorch.GradMode;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.jspecify.annotations.Nullable;
import org.lora4j.ops.Tensors;

/**
 * One pass through a linear layer with adapters, as its backward pass needs it: the input, which is also what the frozen
 * layer's neighbours keep, and for each adapter its few columns {@code S = dropout(x) A^T}.
 *
 * <p>It runs after the autograd node of the frozen layer's own product, on the gradient {@code dX = dY W} that this node has
 * just made: it adds the adapters' part to that in place and to the gradients of the factors. As the factors are not in the
 * graph, only a {@code backward} that accumulates reaches them, not {@code autograd::grad}; hooks on them do not run.
 *
 * <p>The C++ object belongs to the node once it is added, and knows this object weakly: {@link LivePasses} keeps it.
 */
final class FusedPass extends FunctionPostHook {
    private final String path;
    private final int output;
    private final Tensor x;
    private final int version;
    /** Shares the storage of the weight; the node of the graph is the only other owner of this handle's tensor. */
    private final Tensor marker;

    private final List<Part> parts;
    private final @Nullable Rebuild rebuild;

    /** An adapter on consecutive rows. */
    record Part(
            LoraWeights weights,
            long from,
            long rows,
            Tensor s,
            @Nullable Dropout dropout,
            int a,
            int b) {
        static Part of(LoraWeights weights, long from, long rows, Tensor s, @Nullable Dropout dropout) {
            return new Part(weights, from, rows, Tensors.keep(s), dropout, version(weights.a()), version(weights.b()));
        }
    }

    /**
     * @param path the layer, for messages
     * @param output which of the node's outputs is the gradient of x
     * @param x (T, in) without gradients, kept
     * @param marker the tensor the node keeps and nobody else does
     * @param rebuild makes the weight for the node, for layers that hold it packed; null for others
     */
    FusedPass(String path, int output, Tensor x, Tensor marker, List<Part> parts, @Nullable Rebuild rebuild) {
        this.path = path;
        this.output = output;
        this.x = Tensors.keep(x);
        this.version = version(x);
        this.marker = Tensors.keep(marker);
        this.parts = List.copyOf(parts);
        this.rebuild = rebuild;
    }

    static int version(Tensor tensor) {
        return tensor.is_inference() ? 0 : (int) tensor._version();
    }

    /** Whether the node may still run. */
    boolean graphLives() {
        return marker.use_count() > 1;
    }

    void free() {
        x.close();
        marker.close();
        for (Part part : parts) {
            part.s().close();
            if (part.dropout() != null) {
                part.dropout().close();
            }
        }
        if (rebuild != null) {
            rebuild.free();
        }
    }

    @Override
    public TensorVector apply(TensorVector outputs, TensorVector inputs) {
        if (GradMode.is_enabled()) {
            throw new IllegalStateException(
                    "layer '" + path + "' computes no second derivatives on the fused path: call"
                            + " LoraModel.training().mode(FusedMode.OFF) before a backward pass with create_graph");
        }
        if (rebuild != null) {
            rebuild.forget();
        }
        try (PointerScope scope = new PointerScope()) {
            Tensor dy = inputs.get(0);
            Tensor dx = outputs.get(output);
            if (dy.defined() && dx.defined()) {
                check(version, x, "input");
                for (Part part : parts) {
                    add(part, dy, dx);
                }
            }
        }
        LivePasses.hasRun(this);
        return outputs;
    }

    private void add(Part part, Tensor dy, Tensor dx) {
        LoraWeights weights = part.weights();
        check(part.a(), weights.a(), "factor A");
        check(part.b(), weights.b(), "factor B");
        synchronized (weights) {
            LowRankStep.backward(
                    dy.narrow(0, part.from(), part.rows()),
                    x.narrow(0, part.from(), part.rows()),
                    part.s(),
                    weights,
                    part.dropout() == null ? null : part.dropout().again(),
                    new LowRankStep.Gradients(
                            weights.gradientA(), weights.gradientB(), dx.narrow(0, part.from(), part.rows())));
        }
    }

    private void check(int before, Tensor tensor, String what) {
        int now = version(tensor);
        if (now != before) {
            throw new IllegalStateException("the " + what + " of layer '" + path + "' was changed in place between its"
                    + " forward and its backward pass (version " + now + ", expected " + before
                    + "): run the backward pass before the optimizer's step, or the forward pass again after it");
        }
    }
}
