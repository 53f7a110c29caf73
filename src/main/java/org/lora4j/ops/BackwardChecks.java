package org.lora4j.ops;

import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.pytorch.Tensor;
import org.jspecify.annotations.Nullable;

/** The contract of {@link LoraOps#lowRankBackward}. */
final class BackwardChecks {
    private BackwardChecks() {}

    static void check(
            @Nullable Tensor dx,
            Tensor dy,
            Tensor x,
            @Nullable Tensor h,
            int[] rows,
            List<LowRank> adapters,
            List<LowRankGradient> gradients) {
        Checks.matrix("dy", dy);
        List<Span> spans = new ArrayList<>();
        input("x", x, dy, spans);
        spans.add(Span.of("dy", dy, false));
        if (dx != null) {
            input("dx", dx, dy, spans);
            Checks.writable("dx", dx);
            if (dx.size(1) != x.size(1)) {
                throw new IllegalArgumentException("dx is " + Tensors.describe(dx) + " but x is " + Tensors.describe(x)
                        + ": both must have one shape");
            }
            apart("x", x, dx);
            apart("dy", dy, dx);
        }
        if (h != null) {
            input("h", h, dy, spans);
            long rank = adapters.stream().mapToLong(LowRank::rank).max().orElse(0);
            if (h.size(1) < rank) {
                throw new IllegalArgumentException("h is " + Tensors.describe(h)
                        + " but must have a column for each of the largest rank's " + rank
                        + ": keep all products of the forward pass, or pass null");
            }
            if (dx != null) {
                apart("h", h, dx);
            }
        }
        if (rows.length != dy.size(0)) {
            throw new IllegalArgumentException("rows has " + rows.length + " entries but dy has " + dy.size(0)
                    + " rows: pass one adapter index, or -1, for each row");
        }
        if (gradients.size() != adapters.size()) {
            throw new IllegalArgumentException("gradients has " + gradients.size() + " entries but adapters has "
                    + adapters.size() + ": pass one for each adapter");
        }
        for (int i = 0; i < adapters.size(); i++) {
            LowRank adapter = adapters.get(i);
            String name = "adapters[" + i + "]";
            factor(name + ".a", adapter.a(), dy, dx);
            factor(name + ".b", adapter.b(), dy, dx);
            Checks.scale(name, adapter);
            if (adapter.in() != x.size(1) || adapter.out() != dy.size(1)) {
                throw new IllegalArgumentException(name + " maps " + adapter.in() + " to " + adapter.out()
                        + " features but x is " + Tensors.describe(x) + " and dy is " + Tensors.describe(dy)
                        + ": pass the adapter of this layer");
            }
            spans.add(Span.of(name + ".a", adapter.a(), false));
            spans.add(Span.of(name + ".b", adapter.b(), false));
            gradient("gradients[" + i + "].a", gradients.get(i).a(), adapter.a(), spans);
            gradient("gradients[" + i + "].b", gradients.get(i).b(), adapter.b(), spans);
        }
        Checks.rowNumbers(rows, adapters.size());
        apart(spans);
    }

    private static void input(String name, Tensor tensor, Tensor dy, List<Span> spans) {
        Checks.matrix(name, tensor);
        Checks.device(name, tensor, dy, "dy");
        if (tensor.size(0) != dy.size(0)) {
            throw new IllegalArgumentException(name + " is " + Tensors.describe(tensor) + " and dy is "
                    + Tensors.describe(dy) + ": both must have one row per token");
        }
        spans.add(Span.of(name, tensor, false));
    }

    private static void factor(String name, Tensor factor, Tensor dy, @Nullable Tensor dx) {
        Checks.type(name, factor);
        Checks.device(name, factor, dy, "dy");
        if (dx != null) {
            apart(name, factor, dx);
        }
    }

    private static void gradient(String name, @Nullable Tensor gradient, Tensor factor, List<Span> spans) {
        if (gradient == null) {
            return;
        }
        Checks.matrix(name, gradient);
        Checks.writable(name, gradient);
        Checks.device(name, gradient, factor, "the factor");
        if (gradient.size(0) != factor.size(0) || gradient.size(1) != factor.size(1)) {
            throw new IllegalArgumentException(name + " is " + Tensors.describe(gradient) + " but the factor is "
                    + Tensors.describe(factor) + ": pass a gradient of its shape, or null");
        }
        spans.add(Span.of(name, gradient, true));
    }

    private static void apart(String name, Tensor tensor, Tensor dx) {
        if (Checks.mayOverlap(dx, tensor)) {
            throw new IllegalArgumentException(name + " shares memory with dx: pass a copy of it");
        }
    }

    /** The memory of a matrix, from its first element to the end of its last. */
    private record Span(String name, long start, long end, boolean gradient) {
        static Span of(String name, Tensor matrix, boolean gradient) {
            if (matrix.numel() == 0) {
                return new Span(name, 0, 0, gradient);
            }
            Pointer data = matrix.data_ptr();
            long last = (matrix.size(0) - 1) * matrix.stride(0) + (matrix.size(1) - 1) * matrix.stride(1);
            return new Span(name, data.address(), data.address() + (last + 1) * matrix.element_size(), gradient);
        }
    }

    /** Refuses gradients that reach into each other or into anything that is read. */
    private static void apart(List<Span> spans) {
        spans.sort(Comparator.comparingLong(Span::start));
        Span reaching = new Span("", 0, 0, false);
        Span gradientReaching = reaching;
        for (Span span : spans) {
            Span other = span.gradient ? reaching : gradientReaching;
            if (other.end > span.start && span.end > span.start) {
                Span gradient = span.gradient ? span : other;
                Span rest = span.gradient ? other : span;
                throw new IllegalArgumentException(
                        gradient.name + " shares memory with " + rest.name + ": give each gradient memory of its own");
            }
            reaching = span.end > reaching.end ? span : reaching;
            gradientReaching = span.gradient && span.end > gradientReaching.end ? span : gradientReaching;
        }
    }
}
