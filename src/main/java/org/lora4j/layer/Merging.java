package org.lora4j.layer;

import java.util.List;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.PeftCompat;
import org.lora4j.ops.LowRank;
import org.lora4j.ops.Ops;
import org.lora4j.ops.Tensors;

/** What the weight and the bias of a layer become when adapters are merged into them. Nothing here changes a layer. */
final class Merging {
    private Merging() {}

    /**
     * A new weight with the adapters in it, in the layout and type of the original, rounded once; null if it is to be
     * {@code safe} and would not be finite.
     */
    static @Nullable Tensor weight(
            LoraLayer layer, Tensor original, List<LoraWeights> adapters, ActiveAdapters active, boolean safe) {
        if (!adapters.isEmpty()
                && !active.has(PeftCompat.MERGE_ROUNDS_TWICE)
                && adapters.stream().allMatch(each -> each.magnitude() == null)) {
            Tensor result = original.detach().new_empty(Tensors.shape(original));
            return layer.add(result, original.detach(), adapters, safe) ? result : null;
        }
        if (rescalesOnce(layer, original, adapters, active)) {
            Tensor result = original.detach().new_empty(Tensors.shape(original));
            Tensor base = layer.matrix(original.detach());
            Tensor factors = rescale(base, adapters.get(adapters.size() - 1)).detach();
            List<LowRank> updates = adapters.stream().map(LoraWeights::lowRank).toList();
            boolean finite = Ops.current()
                    .mergeRescaled(
                            layer.matrix(result),
                            base,
                            updates,
                            factors.to(torch.ScalarType.Float).contiguous(),
                            safe);
            return finite ? result : null;
        }
        Tensor result = adapters.isEmpty() ? original : rounded(layer, original, adapters, active);
        return safe && !isFinite(result) ? null : result;
    }

    /** Whether the last adapter, and only that, has a magnitude: then one pass over the weight is enough. */
    private static boolean rescalesOnce(
            LoraLayer layer, Tensor original, List<LoraWeights> adapters, ActiveAdapters active) {
        return !adapters.isEmpty()
                && !active.has(PeftCompat.MERGE_ROUNDS_TWICE)
                && adapters.stream().filter(each -> each.magnitude() != null).count() == 1
                && adapters.get(adapters.size() - 1).magnitude() != null
                && layer.repeats() == 1
                && Tensors.type(original) != torch.ScalarType.Double;
    }

    static boolean isFinite(Tensor tensor) {
        return torch.isfinite(tensor).all().item_bool();
    }

    private static Tensor rounded(LoraLayer layer, Tensor original, List<LoraWeights> adapters, ActiveAdapters active) {
        if (active.has(PeftCompat.MERGE_ROUNDS_TWICE)) {
            return roundedTwice(layer, original, adapters);
        }
        Tensor result = wide(original);
        for (LoraWeights each : adapters) {
            apply(layer, layer.matrix(original), layer.matrix(result), each);
        }
        return result.to(Tensors.type(original));
    }

    /** The whole adapted matrix of a DoRA adapter, (m / n) (W + s B A), shape (out, in), float32 or float64. */
    static Tensor dora(LoraLayer layer, Tensor base, LoraWeights weights) {
        Tensor result = wide(base);
        apply(layer, layer.matrix(base), layer.matrix(result), weights);
        return layer.matrix(result);
    }

    /** A new bias: b + sum_i s_i b_i over the adapters that have one. */
    static Tensor bias(Tensor original, List<LoraWeights> adapters) {
        Tensor result = wide(original);
        for (LoraWeights each : adapters) {
            if (each.bias() != null) {
                result.add_(each.bias().detach(), each.scaleScalar());
            }
        }
        return result.to(Tensors.type(original));
    }

    /** The weight with updates s B A, which gets gradients through A and B, in the weight's type, rounded once. */
    static Tensor adaptedWeight(LoraLayer layer, List<LoraWeights> adapters) {
        Tensor weight = layer.weight();
        Tensor sum = weight;
        for (LoraWeights each : adapters) {
            Tensor update = each.b().matmul(each.a());
            for (int i = 0; i < layer.repeats(); i++) {
                sum = sum.add(update, each.scaleScalar());
            }
        }
        return sum.to(Tensors.type(weight));
    }

    /** The bias with the biases of adapters, which get gradients; undefined if nobody has one. */
    static Tensor adaptedBias(LoraLayer layer, List<LoraWeights> adapters) {
        Tensor bias = layer.bias();
        Tensor sum = bias == null ? new Tensor() : bias;
        for (LoraWeights each : adapters) {
            Tensor update = each.bias();
            if (update != null) {
                sum = sum.defined() ? sum.add(update, each.scaleScalar()) : update.mul(each.scaleScalar());
            }
        }
        return sum.defined() ? sum.to(Tensors.type(layer.weight())) : sum;
    }

    /** m / n, shape (out). */
    static Tensor rescale(Tensor baseMatrix, LoraWeights weights) {
        Tensor magnitude = weights.magnitude();
        RowNorms norms = weights.norms();
        if (magnitude == null || norms == null) {
            throw new IllegalStateException("not a DoRA adapter");
        }
        return magnitude.flatten().div(norms.of(baseMatrix, weights));
    }

    private static void apply(LoraLayer layer, Tensor baseMatrix, Tensor result, LoraWeights weights) {
        Ops.current().merge(result, List.of(weights.lowRank()));
        if (weights.magnitude() != null) {
            result.mul_(rescale(baseMatrix, weights).detach().unsqueeze(1));
        }
    }

    private static Tensor roundedTwice(LoraLayer layer, Tensor original, List<LoraWeights> adapters) {
        Tensor result = original.contiguous().clone();
        Tensor matrix = layer.matrix(result);
        for (LoraWeights each : adapters) {
            if (each.magnitude() == null) {
                Tensor delta = layer.update(each);
                for (int i = 0; i < layer.repeats(); i++) {
                    matrix.add_(delta.to(Tensors.type(matrix)));
                }
            } else {
                Tensor temporary = wide(result);
                apply(layer, layer.matrix(original), layer.matrix(temporary), each);
                matrix.copy_(layer.matrix(temporary));
            }
        }
        return result;
    }

    /** A float32 copy, or a float64 one of a float64 tensor. */
    private static Tensor wide(Tensor tensor) {
        boolean wide = Tensors.type(tensor) == torch.ScalarType.Double;
        return tensor.detach()
                .contiguous()
                .to(wide ? torch.ScalarType.Double : torch.ScalarType.Float)
                .clone();
    }
}
