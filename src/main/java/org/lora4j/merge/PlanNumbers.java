package org.lora4j.merge;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.format.DType;
import org.lora4j.format.ShardedCheckpoint.Location;
import org.lora4j.format.TensorInfo;
import org.lora4j.merge.TensorEdit.Update;
import org.lora4j.ops.LowRank;

/** Sizes of changes: norms of updates from their factors alone, norms of weights from a sample. */
final class PlanNumbers {
    private static final int SAMPLES = 16;
    private static final int SAMPLE_ELEMENTS = 4096;

    /** Mean square of a number, and of the error of rounding it. */
    private record Sample(double square, double rounding) {}

    private final MergeSession session;

    PlanNumbers(MergeSession session) {
        this.session = session;
    }

    MergePlan.Change change(String file, OutputFile.Tensor tensor, TensorEdit edit) throws IOException {
        TensorInfo info = tensor.info();
        long elements = Numbers.count(info.shape());
        Location stored = edit.copyOf != null ? edit.copyOf : edit.base;
        double delta = edit.updates.isEmpty() ? Double.NaN : norm(edit);
        double weight = Double.NaN;
        double signal = Double.NaN;
        if (stored != null && Numbers.isFloat(stored.info().dtype()) && elements > 0) {
            Sample sample = sample(stored, info.dtype());
            weight = Math.sqrt(sample.square() * Numbers.count(stored.info().shape()));
            if (!edit.updates.isEmpty()) {
                signal = 20 * Math.log10(delta / Math.sqrt(sample.rounding() * elements));
            }
        }
        List<String> keys = new ArrayList<>();
        List<String> actions = new ArrayList<>();
        describe(edit, keys, actions);
        return new MergePlan.Change(
                info.name(),
                file,
                Arrays.stream(info.shape()).boxed().toList(),
                stored == null ? null : stored.info().dtype().name(),
                info.dtype().name(),
                keys,
                actions,
                delta,
                weight,
                signal,
                elements * info.dtype().bits() / 8);
    }

    private static void describe(TensorEdit edit, List<String> keys, List<String> actions) {
        if (edit.copyOf != null) {
            actions.add("starts as a copy of " + edit.copyOf.info().name());
        }
        if (edit.value != null) {
            keys.add(edit.value.adapter() + ": " + edit.value.key());
            actions.add(edit.base == null ? "is new" : "is replaced");
        }
        edit.tokens.forEach(rows -> {
            keys.add(rows.adapter() + ": " + rows.key());
            actions.add("replaces " + rows.ids().length + " rows");
        });
        edit.updates.forEach(update -> {
            keys.add(update.adapter() + ": " + update.a());
            keys.add(update.adapter() + ": " + update.b());
            if (update.magnitude() != null) {
                keys.add(update.adapter() + ": " + update.magnitude());
            }
            actions.add(String.format(
                    Locale.ROOT,
                    "adds r=%d scale=%s%s%s%s",
                    update.rank(),
                    number(update.scale()),
                    update.magnitude() == null ? "" : ", DoRA",
                    update.swapped() ? ", stored as (in, out)" : "",
                    update.experts() > 1 ? ", of " + update.experts() + " experts" : ""));
        });
        edit.biases.forEach(bias -> {
            keys.add(bias.adapter() + ": " + bias.key());
            actions.add(String.format(Locale.ROOT, "adds a bias, scale=%s", number(bias.scale())));
        });
    }

    private static String number(double value) {
        return new java.math.BigDecimal(value)
                .round(new java.math.MathContext(6))
                .stripTrailingZeros()
                .toPlainString();
    }

    /** |sum_i s_i B_i A_i|, which is the root of the sum over (L^T L) * (R R^T) with all L = s B and R = A side by side. */
    private double norm(TensorEdit edit) throws IOException {
        Matrices matrices = edit.matrices();
        double squares = 0;
        try (PointerScope scope = new PointerScope();
                NoGradGuard noGrad = new NoGradGuard();
                Factors factors = new Factors(session.adapters())) {
            factors.load(edit.updates);
            for (long m = 0; m < matrices.count(); m++) {
                Matrices.Tile all = new Matrices.Tile(m, 0, matrices.rows(), 0, matrices.columns(), 0);
                TensorVector left = new TensorVector();
                TensorVector right = new TensorVector();
                for (Update update : edit.updates) {
                    LowRank product = factors.lowRank(update, all);
                    left.push_back(product.b().to(ScalarType.Double).mul(new Scalar(product.scale())));
                    right.push_back(product.a().to(ScalarType.Double));
                }
                Tensor l = torch.cat(left, 1);
                Tensor r = torch.cat(right, 0);
                squares += l.t().matmul(l).mul(r.matmul(r.t())).sum().item_double();
            }
        }
        return Math.sqrt(Math.max(0, squares));
    }

    private static Sample sample(Location location, DType rounded) throws IOException {
        TensorInfo info = location.info();
        long elements = Numbers.count(info.shape());
        int size = Numbers.bytes(info.dtype());
        double square = 0;
        double rounding = 0;
        long count = 0;
        for (int s = 0; s < SAMPLES; s++) {
            long from = elements * s / SAMPLES;
            int length = (int) Math.min(SAMPLE_ELEMENTS, elements * (s + 1) / SAMPLES - from);
            ByteBuffer buffer = ByteBuffer.allocate(length * size).order(ByteOrder.LITTLE_ENDIAN);
            location.file().read(info.name(), from * size, buffer);
            buffer.flip();
            for (int i = 0; i < length; i++) {
                double value = value(buffer, i, info.dtype());
                double step = step(value, rounded);
                square += value * value;
                rounding += step * step / 12;
                count++;
            }
        }
        return new Sample(square / Math.max(1, count), rounding / Math.max(1, count));
    }

    private static double value(ByteBuffer buffer, int index, DType dtype) {
        return switch (dtype) {
            case F32 -> buffer.getFloat(4 * index);
            case BF16 -> Float.intBitsToFloat(buffer.getShort(2 * index) << 16);
            default -> half(buffer.getShort(2 * index));
        };
    }

    private static double half(short bits) {
        int exponent = bits >>> 10 & 0x1f;
        int fraction = bits & 0x3ff;
        double size = exponent == 0 ? Math.scalb(fraction, -24) : Math.scalb(1024.0 + fraction, exponent - 25);
        return bits < 0 ? -size : size;
    }

    /** The distance of neighbours around a number in a type. */
    private static double step(double value, DType dtype) {
        int exponent = Math.max(Math.getExponent(value), dtype == DType.F16 ? -14 : -126);
        return Math.scalb(1.0, exponent - (dtype == DType.F32 ? 23 : dtype == DType.BF16 ? 7 : 10));
    }
}
