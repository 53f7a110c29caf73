package org.lora4j.layer;

import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Generator;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.jspecify.annotations.Nullable;
import org.lora4j.ops.Tensors;

/**
 * Principal components of rows that come in batches (Ross et al., 2008), with the arithmetic of PEFT's
 * {@code IncrementalPCA}: the first batch in float32, later ones in float64, each batch decomposed with the same random
 * basis, the largest element of a component positive.
 */
final class IncrementalPca implements AutoCloseable {
    private static final long SEED = 42;
    private static final int ITERATIONS = 4;

    private final int count;
    private final double tau;
    private final boolean[] found;
    private long seen;
    /** Mean and unnormalised variance of each column so far, float64. */
    private @Nullable Tensor mean;

    private @Nullable Tensor spread;
    private @Nullable Tensor components;
    private @Nullable Tensor singularValues;
    private float[] explained = {};

    /**
     * @param count how many components are wanted
     * @param tau the cosine between a component before and after a batch from which it counts as found
     */
    IncrementalPca(int count, double tau) {
        this.count = count;
        this.tau = tau;
        this.found = new boolean[count];
    }

    /**
     * Takes a batch into account, unless it has fewer rows than components are wanted.
     *
     * @param rows shape (n, in), any floating-point type
     */
    void add(Tensor rows) {
        if (rows.size(0) < count) {
            return;
        }
        try (NoGradGuard noGrad = new NoGradGuard();
                PointerScope scope = new PointerScope()) {
            add(rows, rows.detach().to(ScalarType.Float));
        }
    }

    private void add(Tensor rows, Tensor x) {
        Tensor oldMean = mean;
        Tensor before = components;
        long n = rows.size(0);
        long total = seen + n;
        Tensor wide = x.to(ScalarType.Double);
        Tensor sum = wide.sum(0);
        Tensor batchMean = sum.div(new Scalar((double) n));
        Tensor batchSpread = wide.sub(batchMean).square().sum(0);
        Tensor newMean;
        Tensor newSpread;
        Tensor stacked;
        if (oldMean == null || spread == null || before == null || singularValues == null) {
            newMean = batchMean;
            newSpread = batchSpread;
            stacked = wide.sub(batchMean).to(ScalarType.Float);
        } else {
            Tensor apart = oldMean.sub(batchMean);
            double weight = (double) seen / total * n;
            newMean = oldMean.mul(new Scalar((double) seen)).add(sum).div(new Scalar((double) total));
            newSpread = spread.add(batchSpread).add(apart.square().mul(new Scalar(weight)));
            Tensor known = singularValues.unsqueeze(1).mul(before).to(ScalarType.Double);
            Tensor moved = apart.mul(new Scalar(Math.sqrt(weight))).unsqueeze(0);
            try (TensorVector parts = new TensorVector(known, wide.sub(batchMean), moved)) {
                stacked = torch.cat(parts, 0);
            }
        }
        Svd svd = decompose(stacked);
        Tensor s = svd.s().narrow(0, 0, count);
        explained = explained(s, newSpread.sum().item_double());
        if (before != null) {
            converge(svd.vh(), before);
        }
        keep(newMean, newSpread, svd.vh().contiguous().clone(), s.clone());
        seen = total;
    }

    private Svd decompose(Tensor stacked) {
        Svd svd;
        try (Generator random = torch.make_generator_cpu(SEED)) {
            svd = Svd.randomized(stacked, 2L * count, ITERATIONS, random);
        }
        svd = svd.part(0, count);
        return svd.withPositivePeaks();
    }

    /** The part of the variance that each component explains. */
    private static float[] explained(Tensor s, double variance) {
        Tensor energy = s.square().to(ScalarType.Double);
        float[] parts = new float[(int) s.size(0)];
        for (int i = 0; i < parts.length; i++) {
            parts[i] = variance > 0 ? (float) (energy.select(0, i).item_double() / variance) : 0;
        }
        return parts;
    }

    private void converge(Tensor now, Tensor before) {
        Tensor cosine = torch.cosine_similarity(now.to(ScalarType.Double), before.to(ScalarType.Double));
        for (int i = 0; i < count; i++) {
            found[i] = cosine.select(0, i).item_double() >= tau;
        }
    }

    private void keep(Tensor newMean, Tensor newSpread, Tensor newComponents, Tensor newValues) {
        close();
        mean = Tensors.keep(newMean);
        spread = Tensors.keep(newSpread);
        components = Tensors.keep(newComponents);
        singularValues = Tensors.keep(newValues);
    }

    /** Whether a batch has been taken into account. */
    boolean started() {
        return components != null;
    }

    /** Whether the first components all stayed where they were in the last batch. */
    boolean converged(int rank) {
        for (int i = 0; i < Math.min(rank, count); i++) {
            if (!found[i]) {
                return false;
            }
        }
        return true;
    }

    /** The part of the variance that each component explains, largest first; empty before the first batch. */
    float[] explained() {
        return explained.clone();
    }

    /** The first components as rows, shape (rank, in); divided by the roots of their singular values if whitened. */
    Tensor components(int rank, boolean whiten) {
        if (components == null || singularValues == null) {
            throw new IllegalStateException("there was no batch yet");
        }
        Tensor first = components.narrow(0, 0, rank);
        return whiten ? first.div(singularValues.narrow(0, 0, rank).sqrt().unsqueeze(1)) : first.clone();
    }

    @Override
    public void close() {
        for (Tensor each : new Tensor[] {mean, spread, components, singularValues}) {
            if (each != null) {
                each.close();
            }
        }
    }
}
