package org.lora4j.layer;

import java.util.EnumMap;
import java.util.Map;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.InitLoraWeights;
import org.lora4j.config.LoftqConfig;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.PeftCompat;

/**
 * First values of the factors, drawn from LibTorch's generator. Distributions as in PEFT: Linear and convolution start with
 * A uniform (Kaiming with a = sqrt 5, which is the bound 1 / sqrt(fan in)) and B zero; Embedding with A zero and B normal. "orthogonal" is for linear layers alone.
 */
final class Init {
    private Init() {}

    /**
     * A new adapter at a layer.
     *
     * @param given where it starts, for the initialisations that look at data; null for the others
     * @throws IllegalArgumentException if the layer cannot start so
     */
    static Fresh fresh(LoraLayer layer, LoraConfig config, @Nullable Start given) {
        InitLoraWeights.Kind kind = config.initLoraWeights().kind();
        switch (kind) {
            case DEFAULT, RANDOM, GAUSSIAN, ORTHOGONAL -> {
                return new Fresh(weights(layer, config), null);
            }
            case UNKNOWN -> throw cannot(layer, config, "is a name that PEFT 0.21 does not know");
            default -> {}
        }
        boolean embedding = layer instanceof LoraEmbedding;
        if (!layer.isMatrix() && !embedding) {
            throw cannot(layer, config, "starts linear layers only");
        }
        if (embedding && kind != InitLoraWeights.Kind.MICA) {
            return new Fresh(
                    weights(layer, config.toBuilder().initLoraWeights(true).build()), null);
        }
        try (NoGradGuard noGrad = new NoGradGuard()) {
            Start start = given == null ? start(layer, config) : given;
            Tensor residual = start.residual();
            if (residual != null && layer.original() instanceof QuantizedLinear) {
                throw cannot(
                        layer,
                        config,
                        "changes the base weight, which is quantized: quantize after saving the residual model instead");
            }
            LoraWeights weights = with(layer, config, start.a(), start.b(), residual);
            if (residual == null) {
                return new Fresh(weights, null);
            }
            weights.initial(
                    new Factors(start.a().detach().clone(), start.b().detach().clone()));
            Tensor whole = layer.weight().detach().clone();
            layer.matrix(whole).copy_(residual);
            return new Fresh(weights, whole);
        }
    }

    /** Where the layer starts, from its weight alone. */
    private static Start start(LoraLayer layer, LoraConfig config) {
        Tensor weight = layer.matrix(layer.adapters().unmergedWeight(layer));
        int rank = config.rankFor(layer.configPath());
        double scale = config.scale(layer.configPath());
        ActiveAdapters active = layer.adapters().active();
        boolean transposed = layer instanceof LoraHfConv1D;
        try {
            return switch (config.initLoraWeights().kind()) {
                case PISSA -> Pissa.start(weight, rank, scale, config.initLoraWeights());
                case OLORA ->
                    transposed && active.has(PeftCompat.OLORA_NOT_TRANSPOSED)
                            ? Olora.notTransposed(weight, rank, scale)
                            : Olora.start(weight, rank, scale);
                case LOFTQ ->
                    Loftq.start(weight, rank, scale, LoftqConfig.of(config), active.has(PeftCompat.LOFTQ_UNSCALED));
                case MICA -> Mica.start(weight, rank);
                default ->
                    throw cannot(
                            layer,
                            config,
                            "looks at data: call addAdapter(name, config, batches) with calibration batches");
            };
        } catch (IllegalArgumentException e) {
            throw new IllegalArgumentException("layer '" + layer.path() + "': " + e.getMessage(), e);
        }
    }

    private static IllegalArgumentException cannot(LoraLayer layer, LoraConfig config, String why) {
        return new IllegalArgumentException("initLoraWeights is " + config.initLoraWeights() + ", which " + why
                + ", so layer '" + layer.path() + "' (" + layer.type()
                + ") cannot start from it: leave it out of targetModules or use true, false or \"gaussian\"");
    }

    static LoraWeights weights(LoraLayer layer, LoraConfig config) {
        InitLoraWeights.Kind kind = config.initLoraWeights().kind();
        switch (kind) {
            case DEFAULT, RANDOM, GAUSSIAN -> {}
            case ORTHOGONAL -> {
                return orthogonal(layer, config);
            }
            default -> throw cannot(layer, config, "has a start of its own");
        }
        int rank = config.rankFor(layer.configPath());
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
            return with(layer, config, a, b, null);
        }
    }

    /**
     * A and B both random, yet B A = 0: the rows of A and the columns of B lie in the spans of the even and of the odd rows
     * of one random orthogonal matrix Q (r, r). {@code A = (R1 Q_even)^T / 10}, {@code B = R2^T Q_odd / 10} with R1
     * (in, r/2) and R2 (r/2, out) normal, as PEFT's {@code init_lora_weights="orthogonal"}.
     */
    private static LoraWeights orthogonal(LoraLayer layer, LoraConfig config) {
        int rank = config.rankFor(layer.configPath());
        if (!layer.isMatrix() || rank % 2 != 0) {
            throw new IllegalArgumentException(
                    "initLoraWeights is orthogonal, which needs a linear layer and an even rank,"
                            + " but layer '" + layer.path() + "' is a " + layer.type() + " with rank " + rank
                            + ": change r or rankPattern, or use another initialisation");
        }
        try (NoGradGuard noGrad = new NoGradGuard();
                PointerScope scope = new PointerScope()) {
            TensorOptions options = new TensorOptions(torch.ScalarType.Double);
            Tensor q = torch.linalg_qr(torch.randn(new long[] {rank, rank}, options))
                    .get0()
                    .view(rank / 2, 2, rank);
            long in = layer.shapeA(rank)[1];
            long out = layer.shapeB(rank)[0];
            Tensor a = torch.randn(new long[] {in, rank / 2}, options)
                    .matmul(q.select(1, 0))
                    .t();
            Tensor b = torch.randn(new long[] {rank / 2, out}, options).t().matmul(q.select(1, 1));
            return with(layer, config, tenth(layer, a), tenth(layer, b), null);
        }
    }

    /**
     * The weights with what the variants add: a bias on B that starts as zero or, with {@code init_lora_weights=false},
     * uniform as torch.nn.Linear's; and the magnitude, which starts as the norms of the rows of W + s B A.
     */
    private static LoraWeights with(LoraLayer layer, LoraConfig config, Tensor a, Tensor b, @Nullable Tensor residual) {
        Map<LoraWeights.Part, Tensor> parts = new EnumMap<>(Map.of(LoraWeights.Part.A, a, LoraWeights.Part.B, b));
        int rank = config.rankFor(layer.configPath());
        if (config.loraBias()) {
            if (layer instanceof LoraEmbedding) {
                throw new IllegalArgumentException("lora_bias is true, but layer '" + layer.path()
                        + "' is an embedding, which has no bias: leave it out of targetModules");
            }
            Tensor bias = a.new_zeros(layer.outputs());
            if (config.initLoraWeights().kind() == InitLoraWeights.Kind.RANDOM) {
                double bound = 1 / Math.sqrt(rank);
                torch.uniform_(bias, -bound, bound);
            }
            parts.put(LoraWeights.Part.BIAS, bias);
        }
        if (config.useDora()) {
            Tensor base = residual == null ? layer.matrix(layer.adapters().unmergedWeight(layer)) : residual;
            Tensor norms = RowNorms.once(base, a, b, config.scale(layer.configPath()));
            parts.put(LoraWeights.Part.MAGNITUDE, norms.to(layer.factorType()).reshape(layer.shapeMagnitude()));
        }
        LoraWeights weights = new LoraWeights(config, layer.configPath(), parts);
        if (config.initLoraWeights().kind() == InitLoraWeights.Kind.MICA) {
            weights.freezeB();
        }
        return weights;
    }

    private static Tensor tenth(LoraLayer layer, Tensor factor) {
        return factor.div(new Scalar(10.0))
                .to(layer.weight().device(), layer.factorType())
                .contiguous();
    }

    private static void uniform(Tensor factor) {
        double bound = 1 / Math.sqrt((double) factor.numel() / factor.size(0));
        torch.uniform_(factor, -bound, bound);
    }
}
