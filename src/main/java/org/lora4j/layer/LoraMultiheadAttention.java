package org.lora4j.layer;

import java.util.ArrayList;
import java.util.List;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.MultiheadAttentionForwardFuncOptions;
import org.bytedeco.pytorch.MultiheadAttentionImpl;
import org.bytedeco.pytorch.MultiheadAttentionOptions;
import org.bytedeco.pytorch.StringSharedModuleDict;
import org.bytedeco.pytorch.T_TensorTensor_T;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.lora4j.config.LoraConfig;
import org.lora4j.ops.Tensors;

/**
 * A {@code MultiheadAttentionImpl} with adapters on the weight (3E, E) of the input projections of queries, keys and values,
 * and, as {@link #output}, on that of the output projection. An attention is adapted as a whole, as in PEFT.
 *
 * <p>LibTorch's attention applies its projections itself, so the adapted weights {@code W + s B A} are formed for each pass,
 * differentiably. Dropout of the adapter's input has no place there and is left out, as in PEFT; the dropout of the attention
 * itself stays. Both overloads of {@code forward} use the adapters. What calls the attention within C++, as
 * {@code TransformerEncoderLayerImpl} does, uses neither and cannot be adapted.
 *
 * <p>Queries are (L, B, E), keys and values (S, B, E): the batch, which {@code rows} counts, is the second dimension.
 */
public final class LoraMultiheadAttention extends MultiheadAttentionImpl implements LoraLayer {
    private final MultiheadAttentionImpl original;
    private final LayerAdapters adapters;
    private final LoraAttentionOutput output;

    /** @throws IllegalArgumentException if keys or values have another width than queries: their projections are apart then */
    public LoraMultiheadAttention(MultiheadAttentionImpl original, String path, ActiveAdapters active) {
        super((Pointer) original);
        if (!original._qkv_same_embed_dim()) {
            MultiheadAttentionOptions options = original.options();
            throw new IllegalArgumentException("attention '" + path + "' has embed_dim "
                    + options.embed_dim().get() + ", kdim "
                    + options.kdim().get() + " and vdim " + options.vdim().get()
                    + ", but an adapter needs all three to be equal: leave it out of targetModules");
        }
        this.original = original;
        this.adapters = new LayerAdapters(path, active);
        this.output = Tensors.keep(new LoraAttentionOutput(outputOf(original), path, active));
    }

    /** The output projection, which the Java class does not show. */
    private static LinearImpl outputOf(MultiheadAttentionImpl attention) {
        StringSharedModuleDict children = attention.named_children();
        for (long i = 0; i < children.size(); i++) {
            if (children.get(i).key().getString().equals("out_proj")) {
                Module child = children.get(i).access();
                return Tensors.keep(child.asLinear());
            }
        }
        throw new IllegalStateException("LibTorch's MultiheadAttention has no out_proj: use the version in the POM");
    }

    /** The adapters of the output projection. */
    public LoraAttentionOutput output() {
        return output;
    }

    @Override
    public List<LoraLayer> parts() {
        return List.of(output);
    }

    @Override
    public MultiheadAttentionImpl original() {
        return original;
    }

    @Override
    public String type() {
        return "lora.MultiheadAttention";
    }

    @Override
    public LayerAdapters adapters() {
        return adapters;
    }

    @Override
    public Tensor weight() {
        return in_proj_weight();
    }

    @Override
    public Tensor bias() {
        return in_proj_bias();
    }

    @Override
    public boolean isMatrix() {
        return true;
    }

    @Override
    public Tensor matrix(Tensor weight) {
        return weight;
    }

    @Override
    public T_TensorTensor_T forward(Tensor query, Tensor key, Tensor value) {
        return forward(query, key, value, new Tensor(), true, new Tensor(), true);
    }

    /** As {@code MultiheadAttentionImpl}'s, whose arguments and results these are. */
    @Override
    public T_TensorTensor_T forward(
            Tensor query,
            Tensor key,
            Tensor value,
            Tensor keyPaddingMask,
            boolean needWeights,
            Tensor attentionMask,
            boolean averageWeights) {
        Inputs inputs = new Inputs(query, key, value, keyPaddingMask, needWeights, attentionMask, averageWeights);
        RowAdapters rows = adapters.rows();
        if (rows == null) {
            return attend(inputs, adapters.inUse(), output.adapters().inUse());
        }
        rows.checkBatch(path(), query.size(1));
        return mixed(inputs, rows);
    }

    /** The arguments of a pass. The masks may be undefined. */
    private record Inputs(
            Tensor query,
            Tensor key,
            Tensor value,
            Tensor keyPaddingMask,
            boolean needWeights,
            Tensor attentionMask,
            boolean averageWeights) {
        /** Those of some rows of the batch. The attention mask is the same for all: LibTorch's attention takes (L, S) only. */
        Inputs of(Tensor rows) {
            return new Inputs(
                    query.index_select(1, rows),
                    key.index_select(1, rows),
                    value.index_select(1, rows),
                    keyPaddingMask.defined() ? keyPaddingMask.index_select(0, rows) : keyPaddingMask,
                    needWeights,
                    attentionMask,
                    averageWeights);
        }
    }

    private T_TensorTensor_T attend(Inputs in, List<LoraWeights> projections, List<LoraWeights> outputs) {
        if (projections.isEmpty() && outputs.isEmpty()) {
            return original.forward(
                    in.query(),
                    in.key(),
                    in.value(),
                    in.keyPaddingMask(),
                    in.needWeights(),
                    in.attentionMask(),
                    in.averageWeights());
        }
        MultiheadAttentionOptions own = options();
        MultiheadAttentionForwardFuncOptions options = new MultiheadAttentionForwardFuncOptions(
                own.embed_dim().get(),
                own.num_heads().get(),
                Merging.adaptedWeight(this, projections),
                Merging.adaptedBias(this, projections),
                bias_k(),
                bias_v(),
                own.add_zero_attn().get(),
                own.dropout().get(),
                Merging.adaptedWeight(output, outputs),
                Merging.adaptedBias(output, outputs));
        options.training().put(is_training());
        options.key_padding_mask().put(in.keyPaddingMask());
        options.need_weights().put(in.needWeights());
        options.attn_mask().put(in.attentionMask());
        options.average_attn_weights().put(in.averageWeights());
        return torch.multi_head_attention_forward(in.query(), in.key(), in.value(), options);
    }

    /** The rows of each adapter in a pass of their own, put back in order. */
    private T_TensorTensor_T mixed(Inputs in, RowAdapters rows) {
        List<String> names = new ArrayList<>(rows.distinct());
        names.add(RowAdapters.BASE);
        long[] order = new long[(int) in.query().size(1)];
        int done = 0;
        TensorVector results = new TensorVector();
        TensorVector weights = new TensorVector();
        for (String name : names) {
            long[] of = rows.rowsOf(name);
            if (of.length > 0) {
                Inputs some = in.of(indices(of));
                T_TensorTensor_T result =
                        attend(some, adapters.named(name), output.adapters().named(name));
                results.push_back(result.get0());
                weights.push_back(result.get1());
                for (long row : of) {
                    order[(int) row] = done++;
                }
            }
        }
        if (done == 0) {
            return attend(in, List.of(), List.of());
        }
        Tensor at = indices(order);
        return new T_TensorTensor_T(
                torch.cat(results, 1).index_select(1, at),
                in.needWeights() ? torch.cat(weights, 0).index_select(0, at) : new Tensor());
    }

    private Tensor indices(long[] values) {
        return Tensor.create(values).to(weight().device(), torch.ScalarType.Long);
    }

    /** The projections to queries, keys and values, side by side: (..., 3E). */
    @Override
    public Tensor base(Tensor x) {
        return torch.linear(x, weight(), bias());
    }

    @Override
    public Tensor delta(LoraWeights weights, Tensor x) {
        return torch.linear(torch.linear(x, weights.a()), weights.b());
    }

    @Override
    public long outputs() {
        return weight().size(0);
    }

    @Override
    public long[] shapeA(int rank) {
        return new long[] {rank, weight().size(1)};
    }

    @Override
    public long[] shapeB(int rank) {
        return new long[] {weight().size(0), rank};
    }

    @Override
    public void check(LoraConfig config) {
        String field =
                config.useDora() ? "use_dora" : config.invocationTokens().isEmpty() ? "" : "alora_invocation_tokens";
        if (!field.isEmpty()) {
            throw new IllegalArgumentException(field + " is set, but layer '" + path()
                    + "' is a multi-head attention, whose adapters are part of its weights: leave it out of targetModules or "
                    + "clear " + field);
        }
    }
}
