package org.lora4j.model;

import java.util.ArrayList;
import java.util.List;
import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.lora4j.layer.StackedExperts;
import org.lora4j.ops.Tensors;

/** The mixtures of experts of src/test/python/golden/toys.py: modules with parameters of their own. */
final class MoeToys {
    private MoeToys() {}

    private static Tensor registered(Module module, String name, long... shape) {
        Tensor tensor = Tensors.keep(torch.randn(shape).mul_(new org.bytedeco.pytorch.Scalar(0.4)));
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
}
