package org.lora4j.layer;

import java.util.Map;
import java.util.SplittableRandom;
import java.util.concurrent.ConcurrentHashMap;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.lora4j.ops.Tensors;

/**
 * Linear layers whose result for a row has the same bits in a batch of any size.
 *
 * <p>Libraries choose their kernels by the number of rows, and kernels differ in the order of their sums: OpenBLAS, which
 * LibTorch uses for float32, does so at almost every size, while oneDNN, which it uses for bfloat16, was found not to. So a
 * layer of each size is tried once, with batches of many sizes. Where bits differ, rows are computed {@value #TILE} at a
 * time, the last ones with zeros beside them, so that all products have one shape; and one at a time if a row's place in
 * such a tile makes a difference too.
 */
final class RowStable {
    private static final int TILE = 8;
    private static final int[] SIZES = {1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 48, 64, 100, 128, 200, 256};
    private static final int MOST = SIZES[SIZES.length - 1];

    private record Shape(torch.ScalarType type, long out, long in, boolean bias, boolean cuda) {}

    /** How many rows a product of a shape may have; {@link Integer#MAX_VALUE} for any number. */
    private static final Map<Shape, Integer> TILES = new ConcurrentHashMap<>();

    private RowStable() {}

    /** The output of a linear layer, (..., out). */
    static Tensor forward(LinearImpl linear, Tensor x) {
        int tile = linear.getClass() == LinearImpl.class ? tile(linear, x) : Integer.MAX_VALUE;
        return tile == Integer.MAX_VALUE ? linear.forward(x) : tiled(linear, x, tile);
    }

    private static Tensor tiled(LinearImpl linear, Tensor x, int tile) {
        Tensor rows = x.reshape(-1, x.size(-1));
        long count = rows.size(0);
        TensorVector parts = new TensorVector();
        for (long at = 0; at < count; at += tile) {
            long size = Math.min(tile, count - at);
            Tensor some = rows.narrow(0, at, size);
            if (size < tile) {
                Tensor padded = rows.new_zeros(tile, rows.size(1));
                padded.narrow(0, 0, size).copy_(some);
                some = padded;
            }
            parts.push_back(linear.forward(some.contiguous()).narrow(0, 0, size));
        }
        long[] shape = Tensors.shape(x);
        shape[shape.length - 1] = linear.weight().size(0);
        return torch.cat(parts, 0).view(shape);
    }

    private static int tile(LinearImpl linear, Tensor x) {
        Tensor weight = linear.weight();
        boolean bias = linear.bias() != null && linear.bias().defined();
        Shape shape = new Shape(Tensors.type(weight), weight.size(0), weight.size(1), bias, x.is_cuda());
        Integer known = TILES.get(shape);
        if (known == null) {
            known = find(linear, shape);
            TILES.put(shape, known);
        }
        return known;
    }

    /** The largest tile with which the rows of one batch have the same bits in batches of other sizes, at other places. */
    private static int find(LinearImpl linear, Shape shape) {
        try (PointerScope scope = new PointerScope()) {
            float[] values = new float[(int) (MOST * shape.in())];
            SplittableRandom random = new SplittableRandom(1);
            for (int i = 0; i < values.length; i++) {
                values[i] = (float) (random.nextDouble() * 2 - 1);
            }
            Tensor x =
                    Tensor.create(values, MOST, shape.in()).to(linear.weight().device(), shape.type());
            for (int tile : new int[] {Integer.MAX_VALUE, TILE}) {
                if (isStable(linear, x, tile)) {
                    return tile;
                }
            }
            return 1;
        }
    }

    private static boolean isStable(LinearImpl linear, Tensor x, int tile) {
        Tensor all = tiled(linear, x, Math.min(tile, MOST));
        for (int size : SIZES) {
            for (int from : new int[] {0, (MOST - size) / 3, MOST - size}) {
                try (PointerScope scope = new PointerScope()) {
                    Tensor some = x.narrow(0, from, size).contiguous();
                    Tensor y = tile == Integer.MAX_VALUE ? linear.forward(some) : tiled(linear, some, tile);
                    if (!y.equal(all.narrow(0, from, size))) {
                        return false;
                    }
                }
            }
        }
        return true;
    }
}
