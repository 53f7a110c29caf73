package org.lora4j.model;

import java.util.LinkedHashMap;
import java.util.Map;
import java.util.function.Consumer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.GradMode;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.jspecify.annotations.Nullable;
import org.lora4j.layer.LoraLayer;
import org.lora4j.ops.Tensors;

/** Runs the base model on calibration data and shows what an initialisation wants to see of it. */
final class Calibration {
    private Calibration() {}

    /** What sees the inputs of one layer, (..., in), beside the positions that count. */
    interface Inputs {
        void see(Tensor x, @Nullable Tensor mask);
    }

    /** Runs one batch with a consumer at each layer; records no gradients. */
    static void watch(CalibrationBatch batch, Map<LoraLayer, Inputs> consumers) {
        Tensor mask = batch.mask();
        consumers.forEach((layer, inputs) -> layer.adapters().probe(shielded(x -> inputs.see(x, mask))));
        try (NoGradGuard noGrad = new NoGradGuard()) {
            batch.run();
        } finally {
            consumers.keySet().forEach(layer -> layer.adapters().probe(null));
        }
    }

    /** A consumer whose temporary tensors go at once, and for which nothing is recorded. */
    private static Consumer<Tensor> shielded(Consumer<Tensor> consumer) {
        return x -> {
            try (PointerScope scope = new PointerScope();
                    NoGradGuard noGrad = new NoGradGuard()) {
                consumer.accept(x.detach());
            }
        };
    }

    /**
     * The mean gradients of the layers' weights over batches that call backward, as matrices (out, in). The caller closes
     * them.
     *
     * @throws IllegalArgumentException if a layer got no gradient
     */
    static Map<LoraLayer, Tensor> gradients(Iterable<? extends CalibrationBatch> batches, Iterable<LoraLayer> layers) {
        Map<LoraLayer, Tensor> sums = new LinkedHashMap<>();
        int count = 0;
        boolean before = GradMode.is_enabled();
        GradMode.set_enabled(true);
        try {
            layers.forEach(layer -> layer.weight().set_requires_grad(true));
            for (CalibrationBatch batch : batches) {
                try (PointerScope scope = new PointerScope()) {
                    batch.run();
                    count++;
                    for (LoraLayer layer : layers) {
                        add(sums, layer);
                    }
                }
            }
        } finally {
            layers.forEach(layer -> layer.weight().set_requires_grad(false));
            GradMode.set_enabled(before);
        }
        if (count == 0) {
            throw new IllegalArgumentException("there is no calibration batch: give at least one");
        }
        for (Tensor sum : sums.values()) {
            try (PointerScope scope = new PointerScope()) {
                sum.detach().div_(new org.bytedeco.pytorch.Scalar((double) count));
            }
        }
        return sums;
    }

    /** Moves a layer's gradient into its sum, so that the model holds none afterwards. */
    private static void add(Map<LoraLayer, Tensor> sums, LoraLayer layer) {
        Tensor weight = layer.weight();
        Tensor gradient = weight.grad();
        if (!gradient.defined()) {
            throw new IllegalArgumentException(
                    "layer '" + layer.path()
                            + "' got no gradient from a calibration batch: run() must compute a loss and call backward() on it");
        }
        Tensor matrix = layer.matrix(gradient.detach()).to(org.bytedeco.pytorch.global.torch.ScalarType.Float);
        Tensor sum = sums.get(layer);
        if (sum == null) {
            sums.put(layer, Tensors.keep(matrix.clone()));
        } else {
            sum.add_(matrix);
        }
        weight.mutable_grad().reset();
    }
}
