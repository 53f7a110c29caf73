package org.lora4j.model;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.config.InitLoraWeights;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.LoraConfigBuilder;
import org.lora4j.layer.LoraWeights;
import org.lora4j.layer.StackedExperts;
import org.lora4j.ops.Tensors;

/** The mixtures of experts of src/test/python/golden/toys.py, modules with parameters of their own, and their adapters. */
final class MoeToys {
    private MoeToys() {}

    private static Tensor registered(Module module, String name, long... shape) {
        Tensor tensor = Tensors.keep(torch.randn(shape).mul_(new Scalar(0.4)));
        module.register_parameter(name, tensor);
        return tensor;
    }

    /** Three experts (..., 6) to (..., 6), and a stack of a single matrix after them. */
    static class Experts extends Module {
        final Tensor gateUp;
        final Tensor down;
        final Tensor last;

        Experts() {
            this(new long[] {3, 10, 6}, new long[] {3, 6, 5});
        }

        Experts(long[] gateUpShape, long[] downShape) {
            gateUp = registered(this, "gate_up_proj", gateUpShape);
            down = registered(this, "down_proj", downShape);
            last = registered(this, "last_proj", 1, 6, 6);
        }

        Tensor forward(Tensor x, Tensor shares) {
            Tensor y = torch.zeros_like(x);
            for (long e = 0; e < 3; e++) {
                TensorVector both = linear(x, gateUp.select(0, e)).chunk(2, -1);
                Tensor hidden = torch.relu(both.get(0)).mul(both.get(1));
                y = y.add(shares.narrow(-1, e, 1).mul(linear(hidden, down.select(0, e))));
            }
            return y.add(linear(y, last.select(0, 0)));
        }

        Tensor linear(Tensor x, Tensor weight) {
            return torch.linear(x, weight);
        }
    }

    /** The same with matrices (in, out). */
    static final class TransposedExperts extends Experts implements StackedExperts {
        TransposedExperts() {
            super(new long[] {3, 6, 10}, new long[] {3, 5, 6});
        }

        @Override
        public boolean isTransposed() {
            return true;
        }

        @Override
        Tensor linear(Tensor x, Tensor weight) {
            return x.matmul(weight);
        }
    }

    /** What share each expert has. */
    static final class Router extends Module {
        final Tensor weight = registered(this, "weight", 3, 6);

        Tensor forward(Tensor x) {
            return torch.linear(x, weight).softmax(-1);
        }
    }

    /** Experts, a linear layer beside them, and a matrix of its own. */
    static final class Block extends Module {
        final Tensor mix = registered(this, "mix", 6, 6);
        final Router router = register_module("router", new Router());
        final Experts experts;
        LinearImpl shared;

        Block(boolean transposed) {
            experts = register_module("experts", transposed ? new TransposedExperts() : new Experts());
            shared = register_module("shared", new LinearImpl(6, 6));
        }

        Tensor forward(Tensor x) {
            Tensor y = experts.forward(x, router.forward(x)).add(shared.forward(x));
            return x.add(torch.linear(y, mix));
        }
    }

    /** Two blocks: (B, 4, 6) to (B, 4, 5). */
    static final class Moe extends Toys.Net {
        final List<Block> layers = new ArrayList<>();
        LinearImpl head;

        Moe(boolean transposed) {
            Module list = register_module("layers", new Module());
            for (int i = 0; i < 2; i++) {
                layers.add(list.register_module(Integer.toString(i), new Block(transposed)));
            }
            head = register_module("head", new LinearImpl(6, 5));
        }

        @Override
        Tensor forward(Tensor x) {
            for (Block layer : layers) {
                x = layer.forward(x);
            }
            return head.forward(x);
        }
    }

    static MoeToys.Moe moe(boolean transposed, ScalarType type) {
        MoeToys.Moe net = new MoeToys.Moe(transposed);
        net.to(type, false);
        net.eval();
        return net;
    }

    /** An adapter whose factors are both random. */
    static LoraConfigBuilder config(int r, double alpha, String... parameters) {
        return LoraConfig.builder()
                .r(r)
                .loraAlpha(alpha)
                .targetModules()
                .targetParameters(parameters)
                .initLoraWeights(InitLoraWeights.of(false));
    }

    static Tensor input(ScalarType type) {
        return torch.randn(new long[] {2, 4, 6}).to(type);
    }

    static Map<String, Tensor> copies(Module model) {
        Map<String, Tensor> copies = new LinkedHashMap<>();
        Parameters.of(model).forEach((path, p) -> copies.put(path, p.detach().clone()));
        return copies;
    }

    /** Base plus updates, by a sum over expert and rank that is written out; recorded for autograd. */
    static Tensor adapted(Tensor base, boolean transposed, LoraWeights weights) {
        boolean stack = base.dim() == 3;
        long experts = stack ? base.size(0) : 1;
        List<Tensor> matrices = new ArrayList<>();
        for (long e = 0; e < experts; e++) {
            Tensor matrix = stack ? base.select(0, e) : base;
            for (long j = 0; j < weights.rank(); j++) {
                Tensor row = weights.a().select(0, e * weights.rank() + j);
                Tensor column = weights.b().select(1, j * experts + e);
                Tensor update = transposed ? torch.outer(row, column) : torch.outer(column, row);
                matrix = matrix.add(update, new Scalar(weights.scale()));
            }
            matrices.add(matrix);
        }
        return stack ? torch.stack(new TensorVector(matrices.toArray(new Tensor[0])), 0) : matrices.get(0);
    }
}
