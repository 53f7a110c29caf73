package org.lora4j.merge;

import java.io.IOException;
import java.lang.ref.Reference;
import java.nio.ByteBuffer;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.DType;
import org.lora4j.format.FormatException;
import org.lora4j.format.ShardedCheckpoint.Location;
import org.lora4j.merge.Matrices.Tile;
import org.lora4j.merge.TensorEdit.TokenRows;
import org.lora4j.merge.TensorEdit.Update;
import org.lora4j.ops.AdaptedRows;
import org.lora4j.ops.LowRank;
import org.lora4j.ops.Ops;
import org.lora4j.ops.Tensors;

/**
 * A tensor with adapters in it, or in another type: what the merge of a loaded model gives, computed tile by tile. Products
 * are added in float32 and rounded once.
 */
final class TensorMerge implements TensorWork {
    private final OutputFile.Tensor target;
    private final @Nullable TensorEdit edit;
    private final List<AdapterSource> adapters;
    private final MergeOptions options;
    private final Matrices matrices;
    private final List<Tile> tiles;
    private final Bytes source;
    private final DType sourceType;
    /** The type before the conversion to the target's. */
    private final DType workType;

    private final @Nullable StochasticRounding rounding;
    private final Factors factors;
    private final Map<Update, Tensor> rescales = new LinkedHashMap<>();
    private @Nullable String sourceHash;

    TensorMerge(OutputFile.Tensor target, List<AdapterSource> adapters, MergeOptions options, int tileElements)
            throws IOException {
        this.target = target;
        this.edit = target.edit();
        this.adapters = adapters;
        this.options = options;
        this.factors = new Factors(adapters);
        this.matrices = edit == null ? Matrices.of(target.info().shape(), false) : edit.matrices();
        this.tiles = matrices.tiles(tileElements);
        if (edit != null && edit.value != null) {
            source = Bytes.of(adapters.get(edit.value.adapter()).file(), edit.value.key());
            sourceType = edit.value.dtype();
        } else {
            Location from = Objects.requireNonNull(target.source());
            source = Bytes.of(from.file(), from.info().name());
            sourceType = from.info().dtype();
        }
        Location base = edit == null ? target.source() : edit.copyOf != null ? edit.copyOf : edit.base;
        workType = base == null ? sourceType : base.info().dtype();
        boolean rounds = options.seed().isPresent() && target.info().dtype() != DType.F32;
        rounding = rounds && Numbers.isFloat(workType)
                ? new StochasticRounding(
                        options.seed().getAsLong(), target.info().name())
                : null;
    }

    @Override
    public List<Tile> tiles() {
        return tiles;
    }

    @Override
    public int inBytes(Tile tile) {
        return (int) tile.elements() * Numbers.bytes(sourceType);
    }

    @Override
    public int outBytes(Tile tile) {
        return (int) tile.elements() * Numbers.bytes(target.info().dtype());
    }

    @Override
    public void read(Tile tile, ByteBuffer in) throws IOException {
        source.read(tile.first() * Numbers.bytes(sourceType), in);
    }

    @Override
    public boolean isCopy() {
        return target.isCopy()
                || edit != null
                        && edit.updates.isEmpty()
                        && edit.biases.isEmpty()
                        && edit.tokens.isEmpty()
                        && sourceType == workType
                        && workType == target.info().dtype();
    }

    @Override
    public @Nullable String sourceHash() {
        return sourceHash;
    }

    @Override
    public void start() throws IOException {
        if (edit == null) {
            return;
        }
        if (edit.base != null && (edit.value != null || edit.copyOf != null)) {
            sourceHash = Hash.of(edit.base);
        }
        try (PointerScope scope = new PointerScope();
                NoGradGuard noGrad = new NoGradGuard()) {
            factors.load(edit.updates);
            for (TensorEdit.BiasUpdate bias : edit.biases) {
                factors.load(bias.adapter(), bias.key());
            }
            for (TokenRows rows : edit.tokens) {
                factors.load(rows.adapter(), rows.key());
            }
            for (Update update : edit.updates) {
                if (update.magnitude() != null) {
                    rescales.put(update, Tensors.keep(rescale(update, update.magnitude())));
                }
            }
        }
    }

    @Override
    public ByteBuffer compute(Tile tile, ByteBuffer in, ByteBuffer out) throws IOException {
        if (isCopy()) {
            return in;
        }
        ByteBuffer result;
        try (PointerScope scope = new PointerScope();
                NoGradGuard noGrad = new NoGradGuard()) {
            Tensor memory = Blobs.matrix(in, sourceType, tile.rows(), tile.columns());
            if (edit != null && isInPlace()) {
                Ops.current().merge(memory, factors.lowRanks(edit.updates, tile));
                result = in;
            } else {
                write(tile, changed(tile, memory), out);
                result = out.position(0).limit(outBytes(tile));
            }
            Reference.reachabilityFence(in);
        }
        if (edit != null
                && !options.allowNonFinite()
                && !Blobs.finite(result, target.info().dtype())) {
            throw new FormatException("tensor \"" + target.info().name() + "\" would have NaN or infinite values in "
                    + target.info().dtype()
                    + ": check the adapter's values and scale, or choose another type (--dtype)");
        }
        return result;
    }

    /** Plain updates are added in the buffer itself, if that is all there is to do. */
    @Override
    public boolean isInPlace() {
        return edit != null && edit.isPlain() && sourceType == target.info().dtype() && rounding == null;
    }

    /** The tile with everything done to it, in the type it was computed in. */
    private Tensor changed(Tile tile, Tensor read) {
        Tensor result = read.to(Numbers.torch(workType));
        if (edit == null) {
            return result;
        }
        result = edit.tokens.isEmpty() ? result : withTokens(tile, result);
        if (!edit.biases.isEmpty()) {
            result = wide(result);
            for (TensorEdit.BiasUpdate bias : edit.biases) {
                Tensor added = factors.get(bias.adapter(), bias.key()).to(ScalarType.Float);
                Tensor part = added.flatten().narrow(0, tile.column(), tile.columns());
                result.add_(part.unsqueeze(0), new Scalar(bias.scale()));
            }
        }
        if (edit.updates.isEmpty()) {
            return result;
        }
        result = wide(result);
        if (!edit.hasMagnitude()) {
            Ops.current().merge(result, factors.lowRanks(edit.updates, tile));
            return result;
        }
        for (Update update : edit.updates) {
            Ops.current().merge(result, List.of(factors.lowRank(update, tile)));
            Tensor rescale = rescales.get(update);
            if (rescale != null) {
                boolean columns = update.swapped();
                Tensor part = columns
                        ? rescale.narrow(0, tile.column(), tile.columns()).unsqueeze(0)
                        : rescale.narrow(0, tile.row(), tile.rows()).unsqueeze(1);
                result.mul_(part);
            }
        }
        return result;
    }

    /** A float32 copy. */
    private static Tensor wide(Tensor tensor) {
        Tensor typed = tensor.to(ScalarType.Float);
        return typed.is_alias_of(tensor) ? typed.clone() : typed;
    }

    private void write(Tile tile, Tensor result, ByteBuffer out) {
        DType dtype = target.info().dtype();
        out.clear();
        if (rounding != null && (edit != null || dtype != workType)) {
            Tensor values = result.to(ScalarType.Float).contiguous();
            ByteBuffer numbers = new BytePointer(values.data_ptr())
                    .limit(tile.elements() * Float.BYTES)
                    .asByteBuffer();
            rounding.round(numbers, tile.first(), dtype, out);
            Reference.reachabilityFence(values);
        } else {
            Blobs.matrix(out, dtype, tile.rows(), tile.columns()).copy_(result);
        }
        Reference.reachabilityFence(out);
    }

    private Tensor withTokens(Tile tile, Tensor read) {
        Tensor result = read.clone();
        for (TokenRows rows : Objects.requireNonNull(edit).tokens) {
            Tensor values = factors.get(rows.adapter(), rows.key());
            for (int i = 0; i < rows.ids().length; i++) {
                long row = rows.ids()[i] - tile.row();
                if (row >= 0 && row < tile.rows()) {
                    result.select(0, row).copy_(values.select(0, i).narrow(0, tile.column(), tile.columns()));
                }
            }
        }
        return result;
    }

    /** DoRA's m / n, shape (out): the norms n are those of the weight before any product is added. */
    private Tensor rescale(Update update, String magnitude) throws IOException {
        AdapterSource adapter = adapters.get(update.adapter());
        Tensor a = factors.matrixA(update, 0).to(ScalarType.Float);
        Tensor b = factors.matrixB(update, 0).to(ScalarType.Float);
        LowRank product = new LowRank(a, b, update.scale());
        AdaptedRows rows;
        if (update.swapped()) {
            Tensor all = read(0, matrices.rows()).t();
            rows = new AdaptedRows(product.out(), product.in(), (from, count) -> all.narrow(0, from, count));
        } else {
            rows = new AdaptedRows(product.out(), product.in(), (from, count) -> {
                try {
                    return read(from, count);
                } catch (IOException e) {
                    throw new java.io.UncheckedIOException(e);
                }
            });
        }
        Tensor norms = rows.norms(rows.squares(), product);
        return adapter.load(magnitude).to(ScalarType.Float).flatten().div(norms);
    }

    /** Rows of the weight as the products find it, in memory of their own. */
    private Tensor read(long from, long count) throws IOException {
        long columns = matrices.columns();
        try (TensorOptions type = new TensorOptions(Numbers.torch(sourceType))) {
            Tensor rows = torch.empty(new long[] {count, columns}, type, null);
            int size = Numbers.bytes(sourceType);
            long bytes = count * columns * size;
            int piece = 1 << 30;
            for (long at = 0; at < bytes; at += piece) {
                ByteBuffer memory = new BytePointer(rows.data_ptr())
                        .position(at)
                        .limit(Math.min(bytes, at + piece))
                        .asByteBuffer();
                source.read(from * columns * size + at, memory);
            }
            Tensor typed = rows.to(Numbers.torch(workType));
            Tile tile = new Tile(0, from, count, 0, columns, from * columns);
            return Objects.requireNonNull(edit).tokens.isEmpty() ? typed : withTokens(tile, typed);
        }
    }

    /** What leads from the result of a tile back to the original, of the type it had. */
    byte[] residual(Tile tile, ByteBuffer original, DType type, ByteBuffer result, Residual codec) {
        try (PointerScope scope = new PointerScope();
                NoGradGuard noGrad = new NoGradGuard()) {
            List<LowRank> updates =
                    edit != null && Residual.isPredicted(edit) ? factors.lowRanks(edit.updates, tile) : List.of();
            Tensor before = Blobs.matrix(original, type, tile.rows(), tile.columns());
            Tensor after = Blobs.matrix(result, target.info().dtype(), tile.rows(), tile.columns());
            byte[] residual = codec.encode(before, after, updates);
            Reference.reachabilityFence(original);
            Reference.reachabilityFence(result);
            return residual;
        }
    }

    @Override
    public void finish() {
        factors.close();
        rescales.values().forEach(Tensor::close);
        rescales.clear();
    }
}
