package org.lora4j.model;

import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.bytedeco.javacpp.LongPointer;
import org.bytedeco.pytorch.Conv1dImpl;
import org.bytedeco.pytorch.Conv1dOptions;
import org.bytedeco.pytorch.Conv2dImpl;
import org.bytedeco.pytorch.Conv2dOptions;
import org.bytedeco.pytorch.Conv3dImpl;
import org.bytedeco.pytorch.Conv3dOptions;
import org.bytedeco.pytorch.ConvPaddingMode;
import org.bytedeco.pytorch.EmbeddingImpl;
import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.MultiheadAttentionImpl;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.kCircular;
import org.lora4j.layer.HfConv1D;

/** The modules of src/test/python/golden/toys.py, written as a user writes a LibTorch module in Java. */
final class Toys {
    private Toys() {}

    /** A module with a forward method. */
    abstract static class Net extends Module {
        abstract Tensor forward(Tensor x);
    }

    static final class Mlp extends Net {
        LinearImpl lin0 = register_module("lin0", new LinearImpl(10, 20));
        LinearImpl lin1 = register_module("lin1", new LinearImpl(20, 2));

        @Override
        Tensor forward(Tensor x) {
            return lin1.forward(torch.relu(lin0.forward(x)));
        }
    }

    static final class EmbConv extends Net {
        EmbeddingImpl emb = register_module("emb", new EmbeddingImpl(100, 5));
        HfConv1D conv1d = register_module("conv1d", new HfConv1D(5, 1));
        LinearImpl lin0 = register_module("lin0", new LinearImpl(10, 2));

        @Override
        Tensor forward(Tensor x) {
            return lin0.forward(torch.relu(conv1d.forward(emb.forward(x))).flatten(1, -1));
        }
    }

    static final class HfMlp extends Net {
        HfConv1D c_fc = register_module("c_fc", new HfConv1D(6, 13));
        HfConv1D c_proj = register_module("c_proj", new HfConv1D(13, 6));

        @Override
        Tensor forward(Tensor x) {
            return c_proj.forward(torch.relu(c_fc.forward(x)));
        }
    }

    static final class Conv1dNet extends Net {
        Conv1dImpl conv1d;
        LinearImpl lin0 = register_module("lin0", new LinearImpl(7 * 6, 2));

        Conv1dNet() {
            Conv1dOptions options = new Conv1dOptions(3, 7, new LongPointer(new long[] {3}));
            options.stride().put(2);
            options.padding().put(new LongPointer(new long[] {1}));
            conv1d = register_module("conv1d", new Conv1dImpl(options));
        }

        @Override
        Tensor forward(Tensor x) {
            return lin0.forward(torch.relu(conv1d.forward(x)).flatten(1, -1));
        }
    }

    static final class Conv2dNet extends Net {
        Conv2dImpl conv2d;
        LinearImpl lin0;

        Conv2dNet(long in, long[] kernel, long[] stride, long[] padding, long groups, long features) {
            Conv2dOptions options = new Conv2dOptions(in, 10, new LongPointer(kernel));
            options.stride().put(stride);
            options.padding().put(new LongPointer(padding));
            options.groups().put(groups);
            conv2d = register_module("conv2d", new Conv2dImpl(options));
            lin0 = register_module("lin0", new LinearImpl(features, 2));
        }

        @Override
        Tensor forward(Tensor x) {
            return lin0.forward(torch.relu(conv2d.forward(x)).flatten(1, -1));
        }
    }

    static final class Conv3dNet extends Net {
        Conv3dImpl conv3d;
        LinearImpl lin0 = register_module("lin0", new LinearImpl(6 * 5 * 2 * 3, 2));

        Conv3dNet() {
            Conv3dOptions options = new Conv3dOptions(2, 6, new LongPointer(new long[] {3, 2, 3}));
            options.stride().put(new long[] {1, 2, 1});
            options.padding().put(new LongPointer(new long[] {1, 0, 1}));
            conv3d = register_module("conv3d", new Conv3dImpl(options));
        }

        @Override
        Tensor forward(Tensor x) {
            return lin0.forward(torch.relu(conv3d.forward(x)).flatten(1, -1));
        }
    }

    static final class Conv2dCircularNet extends Net {
        Conv2dImpl conv2d;

        Conv2dCircularNet() {
            Conv2dOptions options = new Conv2dOptions(3, 6, new LongPointer(new long[] {3, 3}));
            options.padding().put(new LongPointer(new long[] {1, 1}));
            options.padding_mode().put(new ConvPaddingMode(new kCircular()));
            conv2d = register_module("conv2d", new Conv2dImpl(options));
        }

        @Override
        Tensor forward(Tensor x) {
            return conv2d.forward(x);
        }
    }

    static final class AttentionNet extends Net {
        MultiheadAttentionImpl mha = register_module("mha", new MultiheadAttentionImpl(12, 3));
        LinearImpl lin0 = register_module("lin0", new LinearImpl(12, 5));

        @Override
        Tensor forward(Tensor x) {
            Tensor first = x.transpose(0, 1);
            return lin0.forward(mha.forward(first, first, first).get0()).transpose(0, 1);
        }
    }

    static Net of(String name) {
        long[] one = {1, 1};
        return switch (name) {
            case "attention" -> new AttentionNet();
            case "mlp" -> new Mlp();
            case "embconv" -> new EmbConv();
            case "hfmlp" -> new HfMlp();
            case "conv1d" -> new Conv1dNet();
            case "conv2d" -> new Conv2dNet(5, new long[] {3, 3}, new long[] {2, 1}, new long[] {1, 0}, 1, 10 * 4 * 7);
            case "conv2d_1x1" -> new Conv2dNet(5, one, one, new long[] {0, 0}, 1, 10 * 3 * 3);
            case "conv2d_groups" -> new Conv2dNet(6, new long[] {3, 3}, one, one, 2, 10 * 5 * 5);
            case "conv2d_circular" -> new Conv2dCircularNet();
            case "conv3d" -> new Conv3dNet();
            case "moe" -> new MoeToys.Moe(false);
            case "moe_transposed" -> new MoeToys.Moe(true);
            default -> throw new IllegalArgumentException("no toy " + name);
        };
    }

    /** Blocks in a list, an array and a map, below a module of their own. */
    static final class Nested extends Net {
        final List<Mlp> blocks = new java.util.ArrayList<>();
        final LinearImpl[] heads = new LinearImpl[2];
        final Map<String, Module> named = new LinkedHashMap<>();

        Nested() {
            Module list = register_module("blocks", new Module());
            for (int i = 0; i < 3; i++) {
                blocks.add(list.register_module(Integer.toString(i), new Mlp()));
            }
            for (int i = 0; i < heads.length; i++) {
                heads[i] = register_module("head" + i, new LinearImpl(2, 3));
            }
            named.put("last", register_module("last", new LinearImpl(3, 4)));
        }

        @Override
        Tensor forward(Tensor x) {
            Tensor sum = blocks.get(0).forward(x);
            sum = sum.add(blocks.get(1).forward(x)).add(blocks.get(2).forward(x));
            Tensor both = heads[0].forward(sum).add(heads[1].forward(sum));
            return ((LinearImpl) named.get("last")).forward(both);
        }
    }
}
