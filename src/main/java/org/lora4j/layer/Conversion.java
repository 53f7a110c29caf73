package org.lora4j.layer;

import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.lora4j.config.InitLoraWeights;
import org.lora4j.config.LoraConfig;
import org.lora4j.ops.Tensors;

/**
 * Turns an adapter that started with a part of the base weight (pissa, olora, corda, lora_ga) into one for the base as it
 * was, of twice the rank. With the start A0, B0 the layer computes {@code W - s B0 A0 + s B A}, which is
 * {@code W + s [B, -B0] [A; A0]}: PEFT's {@code subtract_mutated_init}.
 */
public final class Conversion {
    private Conversion() {}

    /**
     * The factors {@code [A; A0]} and {@code [B, -B0]}. Those of a convolution with groups are joined group by group.
     *
     * @param trained the factors now, outside the graph
     * @param initial the factors the adapter started with, of the same shapes
     * @throws IllegalArgumentException if the shapes differ
     */
    public static Factors subtractInitial(Factors trained, Factors initial) {
        Tensor a = trained.a().detach();
        Tensor b = trained.b().detach();
        Tensor a0 = initial.a().detach().to(a.device(), Tensors.type(a));
        Tensor b0 = initial.b().detach().to(b.device(), Tensors.type(b));
        if (!Arrays.equals(Tensors.shape(a), Tensors.shape(a0))
                || !Arrays.equals(Tensors.shape(b), Tensors.shape(b0))) {
            throw new IllegalArgumentException("the trained factors are " + Tensors.describe(a) + " and "
                    + Tensors.describe(b) + ", but the initial ones " + Tensors.describe(a0) + " and "
                    + Tensors.describe(b0) + ": pass the factors of the same layer and adapter");
        }
        long groups = a.size(0) / b.size(1);
        Tensor joined = join(perGroup(a, groups), perGroup(a0, groups)).flatten(0, 1);
        return new Factors(joined, join(b, b0.neg()));
    }

    private static Tensor perGroup(Tensor a, long groups) {
        long[] shape = Tensors.shape(a);
        long[] split = new long[shape.length + 1];
        split[0] = groups;
        split[1] = shape[0] / groups;
        System.arraycopy(shape, 1, split, 2, shape.length - 1);
        return a.reshape(split);
    }

    private static Tensor join(Tensor first, Tensor second) {
        try (TensorVector both = new TensorVector(first, second)) {
            return torch.cat(both, 1);
        }
    }

    /**
     * The configuration of the converted adapter: every rank doubled, every alpha so that the scale of each layer stays
     * (times 2, with {@code useRslora} times the square root of 2), and {@code initLoraWeights} true. PEFT refuses
     * {@code useRslora} together with patterns; the rule holds there too.
     *
     * @throws IllegalArgumentException if an adapter that starts so has no part of the base weight, or not exactly
     */
    public static LoraConfig config(LoraConfig config) {
        InitLoraWeights init = config.initLoraWeights();
        boolean exact = init.changesBase() && init.kind() != InitLoraWeights.Kind.LOFTQ;
        if (!exact && init.kind() != InitLoraWeights.Kind.DEFAULT) {
            throw new IllegalArgumentException("initLoraWeights is " + init + ", which cannot be subtracted from the"
                    + " adapter: save the adapter as it is"
                    + (init.changesBase() ? ", together with the changed base" : ""));
        }
        double factor = config.useRslora() ? Math.sqrt(2) : 2;
        Map<String, Integer> ranks = new LinkedHashMap<>(config.rankPattern());
        ranks.replaceAll((pattern, rank) -> Math.multiplyExact(2, rank));
        Map<String, Double> alphas = new LinkedHashMap<>(config.alphaPattern());
        alphas.replaceAll((pattern, alpha) -> factor * alpha);
        return config.toBuilder()
                .r(Math.multiplyExact(2, config.r()))
                .loraAlpha(factor * config.loraAlpha())
                .rankPattern(ranks)
                .alphaPattern(alphas)
                .initLoraWeights(true)
                .build();
    }
}
