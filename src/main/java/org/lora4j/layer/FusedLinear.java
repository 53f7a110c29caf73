package org.lora4j.layer;

import java.util.ArrayList;
import java.util.List;
import org.bytedeco.pytorch.GradMode;
import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Node;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.PeftCompat;
import org.lora4j.layer.TrainingPath.Kind;
import org.lora4j.ops.Tensors;

/**
 * The forward pass of a linear layer with adapters while gradients are recorded, in one step with the frozen layer:
 * {@code y = W x + b} is computed as always, the updates are added to it in place, and a {@link FusedPass} on the autograd
 * node of {@code W x} does the rest of the backward pass.
 */
final class FusedLinear {
    private static final Scalar ONE = Tensors.keep(new Scalar(1));

    private FusedLinear() {}

    /** Adapters on consecutive rows of the flattened input. */
    record Segment(List<LoraWeights> weights, List<String> names, long from, long rows) {}

    /** The output of the layer, or null if this pass records no gradients, has no adapters, or must take another way. */
    static @Nullable Tensor forward(LoraLinear layer, Tensor x) {
        LayerAdapters adapters = layer.adapters();
        if (!GradMode.is_enabled() || adapters.active().fused() == FusedMode.OFF || adapters.isProbed()) {
            return null;
        }
        List<LoraWeights> inUse = adapters.inUseOrMixed();
        boolean trains = inUse.stream().anyMatch(LoraWeights::requiresGrad);
        if (inUse.isEmpty() || !(trains || x.requires_grad())) {
            return null;
        }
        String obstacle = obstacle(layer, x, inUse);
        if (obstacle != null) {
            adapters.taken().note(Kind.AUTOGRAD, obstacle);
            return null;
        }
        if (!x.requires_grad()) {
            adapters.taken().note(Kind.FACTORS_ONLY, "its input needs no gradient");
            return null;
        }
        adapters.taken().note(Kind.FUSED, "");
        return run(layer, x, inUse);
    }

    /** What keeps a layer from the fused path; null if nothing does. */
    private static @Nullable String obstacle(LoraLinear layer, Tensor x, List<LoraWeights> inUse) {
        LayerAdapters adapters = layer.adapters();
        LinearImpl base = layer.original();
        if (x.numel() == 0 || x.dim() == 0 || !x.is_floating_point()) {
            return "its input is " + Tensors.describe(x);
        }
        if (base instanceof QuantizedLinear quantized) {
            if (quantized.computeType() != null && quantized.computeType() != Tensors.type(x)) {
                return "it computes in " + quantized.computeType() + ", its input is " + Tensors.describe(x);
            }
        } else if (base.getClass() != LinearImpl.class) {
            return "the base layer is a " + base.getClass().getSimpleName();
        } else if (base.weight().requires_grad()) {
            return "its base weight trains";
        } else if (Tensors.type(base.weight()) != Tensors.type(x)) {
            return "its weight is " + Tensors.type(base.weight()) + ", its input " + Tensors.type(x);
        }
        for (LoraWeights each : inUse) {
            if (!each.invocationTokens().isEmpty()) {
                return "an adapter applies from its invocation tokens on";
            }
            if (each.magnitude() != null) {
                if (inUse.size() > 1 || adapters.rows() != null) {
                    return "DoRA beside other adapters";
                }
                if (each.dropout() > 0 && base.is_training()) {
                    return "DoRA with dropout";
                }
                if (base instanceof QuantizedLinear) {
                    return "DoRA on a quantized weight";
                }
            }
        }
        if (adapters.rows() != null && adapters.has(PeftCompat.ROWS_ROUND_TWICE)) {
            return "PeftCompat.ROWS_ROUND_TWICE";
        }
        return adapters.hasTokenRows() ? "an adapter replaces rows of its weight" : null;
    }

    private static Tensor run(LoraLinear layer, Tensor x, List<LoraWeights> inUse) {
        LayerAdapters adapters = layer.adapters();
        long[] shape = Tensors.shape(x);
        long in = shape[shape.length - 1];
        Tensor flat = x.reshape(-1, in);
        Tensor saved = flat.detach();
        boolean dora = inUse.get(0).magnitude() != null;
        Tensor bias = layer.original().bias();
        boolean biased = bias.defined() && !dora;
        Tensor y;
        Tensor transposed;
        Rebuild rebuild = null;
        if (layer.original() instanceof QuantizedLinear quantized) {
            try (NoGradGuard noGrad = new NoGradGuard();
                    Tensor dense = quantized.dequantized(Tensors.type(x))) {
                transposed = dense.t();
            }
            y = product(bias, biased, flat, transposed);
            rebuild = new Rebuild(quantized, transposed);
        } else {
            // A handle of its own for every pass: how many others own its tensor tells whether the graph lives.
            transposed = layer.original().weight().detach().t();
            y = product(bias, biased, flat, transposed);
        }
        List<Segment> segments = adapters.segments(inUse, shape[0], flat.size(0));
        List<FusedPass.Part> parts = new ArrayList<>();
        try (NoGradGuard noGrad = new NoGradGuard()) {
            for (Segment segment : segments) {
                parts.addAll(update(layer, segment, saved, y));
            }
        }
        Node node = y.grad_fn();
        var pass = new FusedPass(layer.path(), biased ? 1 : 0, saved, transposed, parts, rebuild);
        if (rebuild != null) {
            node.add_pre_hook(rebuild);
        }
        node.add_post_hook(pass);
        LivePasses.add(pass);
        shape[shape.length - 1] = y.size(1);
        return finish(layer, inUse, segments, y, dora ? bias : null)
                .to(Tensors.type(x))
                .view(shape);
    }

    private static Tensor product(Tensor bias, boolean biased, Tensor flat, Tensor transposed) {
        return biased ? torch.addmm(bias.to(Tensors.type(flat)), flat, transposed) : torch.mm(flat, transposed);
    }

    /** Adds the updates of a segment to y in place. */
    private static List<FusedPass.Part> update(LoraLinear layer, Segment segment, Tensor x, Tensor y) {
        LoraWeights[] weights = segment.weights().toArray(new LoraWeights[0]);
        Tensor rows = x.narrow(0, segment.from(), segment.rows());
        Tensor[] down = new Tensor[weights.length];
        List<FusedPass.Part> parts = new ArrayList<>();
        for (int i = 0; i < weights.length; i++) {
            Dropout dropout = null;
            if (weights[i].dropout() > 0 && layer.original().is_training()) {
                String name = segment.names().get(i);
                dropout = new Dropout(
                        weights[i].dropout(), x, layer.adapters().active().generator(name));
            }
            Tensor a = weights[i].a().detach();
            down[i] = LowRankStep.down(rows, a, dropout == null ? null : dropout.draw());
            parts.add(FusedPass.Part.of(weights[i], segment.from(), segment.rows(), down[i], dropout));
        }
        LowRankStep.up(y.narrow(0, segment.from(), segment.rows()), down, weights);
        return parts;
    }

    /** What autograd records after the updates: DoRA's rescaling with the base bias, and the biases on B. */
    private static Tensor finish(
            LoraLinear layer, List<LoraWeights> inUse, List<Segment> segments, Tensor y, @Nullable Tensor baseBias) {
        LoraWeights first = inUse.get(0);
        if (first.magnitude() != null) {
            y = y.mul(Merging.rescale(layer.adapters().unmergedWeight(layer), first));
            if (baseBias != null && baseBias.defined()) {
                y = y.add(baseBias);
            }
        }
        for (Segment segment : segments) {
            for (LoraWeights each : segment.weights()) {
                Tensor bias = each.bias();
                if (bias != null && segment.rows() == y.size(0)) {
                    y = y.add(bias, each.scaleScalar());
                } else if (bias != null) {
                    y.narrow(0, segment.from(), segment.rows()).add_(bias.mul(each.scaleScalar()), ONE);
                }
            }
        }
        return y;
    }
}
