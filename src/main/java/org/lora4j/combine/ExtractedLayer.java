package org.lora4j.combine;

import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;
import org.bytedeco.javacpp.DoublePointer;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.layer.Factors;
import org.lora4j.ops.MappedTensors;

/**
 * The leading components of a layer's change, as they are kept until all layers are known.
 *
 * @param total the squared norm of the change
 * @param values the singular values that were found, largest first; none where nothing changed
 * @param residual the squared norm of the change less all components, measured element by element
 */
record ExtractedLayer(long out, long in, double total, double[] values, double residual) {
    static final String A = "a";
    static final String B = "b";
    static final String BIAS = "bias";
    private static final String FACTS = "facts";
    private static final String VALUES = "values";

    /**
     * Decomposes a change.
     *
     * @param transposed whether the weight is stored as (in, out)
     * @param most components to find, or the most with {@code part} above 0
     * @param part of the squared norm to reach; 0 for {@code most} components
     * @return tensors to write; without factors where nothing changed
     */
    static Map<String, Tensor> tensors(Tiles change, boolean transposed, int most, double part, long seed) {
        Tiles difference = change.kept();
        double total = difference.squares();
        Map<String, Tensor> tensors = new LinkedHashMap<>();
        long out = transposed ? change.columns() : change.rows();
        long in = transposed ? change.rows() : change.columns();
        if (!Double.isFinite(total) || total == 0) {
            tensors.put(FACTS, Tensor.create(new double[] {out, in, total, 0}));
            return tensors;
        }
        Components found = part > 0
                ? RandomizedSvd.ofEnergy(difference, part, most, seed)
                : RandomizedSvd.of(difference, most, seed);
        int count = part > 0 ? found.rankFor(part) : Math.min(most, found.count());
        Factors factors = found.factors(count);
        Tensor left = factors.b().to(ScalarType.Float);
        Tensor right = factors.a().to(ScalarType.Float);
        double[] residual = new double[1];
        Tiles.forEach(
                (from, tiles) -> {
                    Tensor rows = left.narrow(0, from, tiles[0].size(0)).matmul(right);
                    residual[0] += Tiles.squares(tiles[0].sub(rows));
                },
                difference);
        double[] values = Arrays.copyOf(found.values(), count);
        Tensor s = Tensor.create(values).to(ScalarType.Float);
        tensors.put(A, transposed ? left.div(s).t().contiguous() : right.contiguous());
        tensors.put(B, transposed ? right.t().mul(s).contiguous() : left.contiguous());
        tensors.put(VALUES, Tensor.create(values));
        tensors.put(FACTS, Tensor.create(new double[] {out, in, total, residual[0]}));
        return tensors;
    }

    static ExtractedLayer of(MappedTensors part) {
        double[] facts = doubles(part.tensor(FACTS));
        double[] values = part.names().contains(VALUES) ? doubles(part.tensor(VALUES)) : new double[0];
        return new ExtractedLayer((long) facts[0], (long) facts[1], facts[2], values, facts[3]);
    }

    private static double[] doubles(Tensor tensor) {
        double[] values = new double[(int) tensor.numel()];
        new DoublePointer(tensor.contiguous().data_ptr()).get(values);
        return values;
    }

    boolean isChanged() {
        return values.length > 0;
    }

    /** The squares of the values. */
    double[] energies() {
        double[] energies = new double[values.length];
        for (int i = 0; i < energies.length; i++) {
            energies[i] = values[i] * values[i];
        }
        return energies;
    }

    /** The squared norm of the error at a rank: measured where all components are used, else |D|^2 - sum of squares. */
    double error(int rank) {
        if (rank >= values.length) {
            return residual;
        }
        double left = total;
        for (int i = 0; i < rank; i++) {
            left -= values[i] * values[i];
        }
        return Math.max(residual, left);
    }

    /** A of a rank, from a part's tensors. */
    static Tensor a(MappedTensors part, int rank) {
        return part.tensor(A).narrow(0, 0, rank);
    }

    static Tensor b(MappedTensors part, int rank) {
        return part.tensor(B).narrow(1, 0, rank);
    }

    static Tensor bias(MappedTensors part, long out) {
        return part.names().contains(BIAS) ? part.tensor(BIAS) : torch.zeros(out);
    }
}
