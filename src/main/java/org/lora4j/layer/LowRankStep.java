package org.lora4j.layer;

import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.jspecify.annotations.Nullable;
import org.lora4j.ops.Tensors;

/**
 * The products of one low-rank update and of its gradients, with LibTorch's matrix products. Where the activations are of
 * another type than the factors, or a mask is needed, rows are converted a few at a time: no copy of an activation is made.
 */
final class LowRankStep {
    private static final Scalar ONE = Tensors.keep(new Scalar(1));

    /** Elements converted at a time. */
    private static final long TILE = 1 << 20;

    private LowRankStep() {}

    private interface Rows {
        void at(long from, long count);
    }

    private static void tiles(boolean whole, Tensor x, Rows work) {
        long rows = x.size(0);
        long step = whole ? rows : Math.max(16, TILE / Math.max(1, x.size(1)));
        for (long from = 0; from < rows; from += step) {
            try (PointerScope scope = new PointerScope()) {
                work.at(from, Math.min(step, rows - from));
            }
        }
    }

    /**
     * {@code S = dropout(x) A^T}.
     *
     * @param x (T, in), of any floating type
     * @param a (r, in)
     * @param masks null without dropout
     * @return (T, r), of A's type
     */
    static Tensor down(Tensor x, Tensor a, Dropout.@Nullable Masks masks) {
        torch.ScalarType type = Tensors.type(a);
        boolean whole = masks == null && Tensors.type(x) == type;
        if (whole) {
            return torch.mm(x, a.t());
        }
        Tensor s = a.new_empty(x.size(0), a.size(0));
        tiles(false, x, (from, count) -> {
            Tensor part = x.narrow(0, from, count).to(type);
            if (masks != null) {
                part = part.mul(masks.next(part));
            }
            s.narrow(0, from, count).copy_(torch.mm(part, a.t()));
        });
        return s;
    }

    /**
     * {@code y += sum_i s_i S_i B_i^T} in place, with one rounding to the type of y.
     *
     * @param y (T, out)
     * @param down the S (T, r_i), all of the type of their B
     */
    static void up(Tensor y, Tensor[] down, LoraWeights[] weights) {
        boolean same = down.length == 1 && Tensors.type(down[0]) == Tensors.type(y);
        tiles(same, y, (from, count) -> {
            Tensor part = y.narrow(0, from, count);
            Tensor sum = same ? part : part.to(Tensors.type(down[0]));
            for (int i = 0; i < down.length; i++) {
                Tensor b = weights[i].b().detach();
                Tensor s = down[i].narrow(0, from, count).to(Tensors.type(sum));
                sum.addmm_(s, b.t().to(Tensors.type(sum)), ONE, weights[i].scaleScalar());
            }
            if (!sum.is_same(part)) {
                part.copy_(sum);
            }
        });
    }

    /**
     * What a backward pass adds to.
     *
     * @param a gradient of A (r, in), or null
     * @param b gradient of B (out, r), or null
     * @param x gradient of x (T, in)
     */
    record Gradients(@Nullable Tensor a, @Nullable Tensor b, Tensor x) {}

    /**
     * The gradients of {@code y = s B A dropout(x)}: {@code dS = s dY B}, {@code dB += s dY^T S}, {@code dA += dS^T
     * dropout(x)}, {@code dX += dropout(dS A)}.
     *
     * @param dy (T, out)
     * @param x (T, in)
     * @param s {@code dropout(x) A^T} (T, r), of the forward pass
     * @param masks those of the forward pass, null without dropout
     */
    static void backward(
            Tensor dy, Tensor x, Tensor s, LoraWeights weights, Dropout.@Nullable Masks masks, Gradients into) {
        Tensor a = weights.a().detach();
        Tensor b = weights.b().detach();
        Scalar scale = weights.scaleScalar();
        torch.ScalarType type = Tensors.type(a);
        boolean whole = masks == null && Tensors.type(x) == type && Tensors.type(dy) == type;
        Tensor wider = x.size(1) >= dy.size(1) ? x : dy;
        tiles(whole, wider, (from, count) -> {
            Tensor dyPart = dy.narrow(0, from, count).to(type);
            Tensor ds = torch.mm(dyPart, b).mul_(scale);
            if (into.b() != null) {
                into.b().addmm_(dyPart.t(), s.narrow(0, from, count), ONE, scale);
            }
            Tensor dx = into.x().narrow(0, from, count);
            if (masks == null) {
                if (into.a() != null) {
                    into.a().addmm_(ds.t(), x.narrow(0, from, count).to(type));
                }
                if (whole) {
                    dx.addmm_(ds, a);
                } else {
                    dx.add_(torch.mm(ds, a));
                }
                return;
            }
            Tensor input = x.narrow(0, from, count).to(type);
            Tensor mask = masks.next(input);
            if (into.a() != null) {
                into.a().addmm_(ds.t(), input.mul(mask));
            }
            dx.add_(torch.mm(ds, a).mul_(mask));
        });
    }
}
