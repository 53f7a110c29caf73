package org.lora4j.layer;

import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.lora4j.config.InitLoraWeights;
import org.lora4j.config.LoraConfig;

/**
 * First values of the factors, drawn from LibTorch's generator. Distributions as in PEFT: Linear and convolution start with
 * A uniform (Kaiming with a = sqrt 5, which is the bound 1 / sqrt(fan in)) and B zero; Embedding with A zero and B normal.
 */
final class Init {
    private Init() {}

    static LoraWeights weights(LoraLayer layer, LoraConfig config) {
        InitLoraWeights.Kind kind = config.initLoraWeights().kind();
        switch (kind) {
            case DEFAULT, RANDOM, GAUSSIAN -> {}
            default ->
                throw new IllegalArgumentException("initLoraWeights is " + config.initLoraWeights() + ", which layer '"
                        + layer.path() + "' cannot start from: use true, false or \"gaussian\"");
        }
        int rank = config.rankFor(layer.path());
        try (NoGradGuard noGrad = new NoGradGuard()) {
            TensorOptions options = new TensorOptions(layer.factorType());
            Tensor a = layer.weight().new_empty(layer.shapeA(rank), options);
            Tensor b = layer.weight().new_empty(layer.shapeB(rank), options);
            boolean random = kind == InitLoraWeights.Kind.RANDOM;
            if (layer instanceof LoraEmbedding) {
                torch.normal_(b, 0, 1);
                if (random) {
                    torch.normal_(a, 0, 1);
                } else {
                    a.zero_();
                }
            } else {
                if (kind == InitLoraWeights.Kind.GAUSSIAN) {
                    torch.normal_(a, 0, 1.0 / rank);
                } else {
                    uniform(a);
                }
                if (random) {
                    uniform(b);
                } else {
                    b.zero_();
                }
            }
            return new LoraWeights(config, layer.path(), a, b);
        }
    }

    private static void uniform(Tensor factor) {
        double bound = 1 / Math.sqrt((double) factor.numel() / factor.size(0));
        torch.uniform_(factor, -bound, bound);
    }
}
