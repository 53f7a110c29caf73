package org.lora4j.train;

import java.util.List;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.pytorch.Tensor;
import org.lora4j.model.LoraModel;
import org.lora4j.model.causal.CausalLM;

/** The trained values of a model. */
final class Weights {
    private Weights() {}

    static float[] of(LoraModel<CausalLM> model) {
        return of(model.trainableParameters());
    }

    static float[] of(List<Tensor> parameters) {
        long count = parameters.stream().mapToLong(Tensor::numel).sum();
        float[] values = new float[(int) count];
        int at = 0;
        for (Tensor parameter : parameters) {
            int size = (int) parameter.numel();
            new FloatPointer(parameter.data_ptr()).get(values, at, size);
            at += size;
        }
        return values;
    }

    /** The largest difference, relative to the largest value. */
    static double difference(float[] a, float[] b) {
        double largest = 0;
        double difference = 0;
        for (int i = 0; i < a.length; i++) {
            largest = Math.max(largest, Math.abs(a[i]));
            difference = Math.max(difference, Math.abs((double) a[i] - b[i]));
        }
        return difference / largest;
    }
}
