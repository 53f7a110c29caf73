package org.lora4j.ops;

import static org.bytedeco.pytorch.global.torch.scaled_dot_product_attention;

import java.util.ArrayList;
import java.util.List;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.DoubleOptional;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptional;
import org.bytedeco.pytorch.global.torch.ScalarType;

/** Paged attention by LibTorch, on any device: gathers the pages of one sequence after the other. */
final class TorchAttention {
    private TorchAttention() {}

    static void attend(Tensor out, Tensor query, Tensor keys, Tensor values, Paging paging) {
        int tokens = paging.sequences().length;
        if (query.dim() != 2 || query.size(0) != tokens || out.size(0) != tokens) {
            throw new IllegalArgumentException("query is " + Tensors.describe(query) + " and out "
                    + Tensors.describe(out) + ", but the paging is of " + tokens
                    + " tokens: pass a row for each");
        }
        int from = 0;
        while (from < tokens) {
            int to = from + 1;
            while (to < tokens && paging.sequences()[to] == paging.sequences()[from]) {
                to++;
            }
            try (PointerScope scope = new PointerScope();
                    NoGradGuard guard = new NoGradGuard()) {
                Tensor y = sequence(query.narrow(0, from, to - from), keys, values, paging, from, to);
                out.narrow(0, from, to - from).copy_(y);
            }
            from = to;
        }
    }

    private static Tensor sequence(Tensor query, Tensor keys, Tensor values, Paging paging, int from, int to) {
        int length = 0;
        for (int t = from; t < to; t++) {
            length = Math.max(length, paging.positions()[t] + 1);
        }
        int row = paging.sequences()[from] * paging.tableWidth();
        List<Long> slots = new ArrayList<>();
        for (int j = 0; j < length; j++) {
            slots.add((long) paging.pages()[row + j / paging.pageTokens()] * paging.pageTokens()
                    + j % paging.pageTokens());
        }
        long width = query.size(1) / paging.heads();
        Tensor at = longs(slots, query);
        Tensor k = heads(keys.index_select(0, at), paging.kvHeads(), width);
        Tensor v = heads(values.index_select(0, at), paging.kvHeads(), width);
        Tensor q = heads(query, paging.heads(), width);
        List<Long> positions = new ArrayList<>();
        List<Long> all = new ArrayList<>();
        for (int t = from; t < to; t++) {
            positions.add((long) paging.positions()[t]);
        }
        for (long j = 0; j < length; j++) {
            all.add(j);
        }
        Tensor own = longs(positions, query).unsqueeze(1);
        Tensor others = longs(all, query);
        Tensor mask = others.le(own);
        if (paging.window() > 0) {
            mask = mask.logical_and(others.gt(own.sub(new Scalar((long) paging.window()))));
        }
        Tensor y = scaled_dot_product_attention(
                q, k, v, new TensorOptional(mask), 0, false, new DoubleOptional(), paging.heads() != paging.kvHeads());
        return y.squeeze(0).transpose(0, 1).reshape(to - from, query.size(1));
    }

    private static Tensor heads(Tensor rows, long heads, long width) {
        return rows.view(rows.size(0), heads, width).transpose(0, 1).unsqueeze(0);
    }

    private static Tensor longs(List<Long> values, Tensor like) {
        return Tensor.create(values.stream().mapToLong(Long::longValue).toArray())
                .to(like.device(), ScalarType.Long);
    }
}
