package org.lora4j.layer;

import java.util.stream.LongStream;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.lora4j.ops.Tensors;

/**
 * Rows of an embedding that an adapter trains in full, in place of the base's: PEFT's {@code trainable_token_indices}. Where
 * a linear layer shares the embedding's weight, as a tied output layer does, its outputs for these tokens follow.
 */
public final class TokenRows implements AutoCloseable {
    private final String path;
    private final Tensor indices;
    private final Tensor rows;
    /** For every row of the weight its place among these, or -1. */
    private final Tensor places;

    /**
     * @param path the module whose weight has the rows
     * @param weight that weight, (V, D)
     * @param ids the tokens, each once, below V
     * @param rows their rows, (n, D), which this object takes over
     */
    public TokenRows(String path, Tensor weight, long[] ids, Tensor rows) {
        this.path = path;
        try (NoGradGuard noGrad = new NoGradGuard()) {
            this.rows = Tensors.keep(rows);
            this.indices = Tensors.keep(Tensor.create(ids).to(weight.device(), torch.ScalarType.Long));
            Tensor order = Tensor.create(LongStream.range(0, ids.length).toArray());
            this.places = Tensors.keep(indices.new_full(new long[] {weight.size(0)}, new Scalar(-1))
                    .index_copy(0, indices, order.to(weight.device(), torch.ScalarType.Long)));
        }
    }

    /** The module whose weight has the rows. */
    public String path() {
        return path;
    }

    /** The trained rows, (n, D): leaves of the autograd graph. */
    public Tensor rows() {
        return rows;
    }

    /** Whether both replace some row. */
    boolean overlaps(TokenRows other) {
        return torch.isin(indices, other.indices).any().item_bool();
    }

    /** The output of a layer with the weight of the base, as it is with these rows. */
    Tensor replace(LoraLayer layer, Tensor x, Tensor y) {
        return x.is_floating_point() ? outputs(layer, x, y) : embedded(x, y);
    }

    /** The outputs of a linear layer for these tokens. */
    private Tensor outputs(LoraLayer layer, Tensor x, Tensor y) {
        Tensor own = torch.linear(x, rows.to(Tensors.type(x)));
        Tensor bias = layer.bias();
        if (bias != null && bias.defined()) {
            own = own.add(bias.index_select(0, indices));
        }
        return y.index_copy(-1, indices, own.to(Tensors.type(y)));
    }

    private Tensor embedded(Tensor ids, Tensor y) {
        Tensor found = places.index_select(0, ids.flatten());
        Tensor at = found.ge(new Scalar(0)).nonzero().flatten();
        if (at.numel() == 0) {
            return y;
        }
        Tensor own = rows.index_select(0, found.index_select(0, at)).to(Tensors.type(y));
        return y.reshape(-1, y.size(-1)).index_copy(0, at, own).view(Tensors.shape(y));
    }

    /** Puts the rows into a weight, (V, D). */
    void writeTo(Tensor weight) {
        weight.index_copy_(0, indices, rows.detach().to(Tensors.type(weight)));
    }

    @Override
    public void close() {
        rows.close();
        indices.close();
        places.close();
    }
}
