package org.lora4j.ops;

import java.util.Arrays;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;

/**
 * The 256 values of the signed dynamic 8-bit type (arXiv:1511.04561), to which bitsandbytes quantizes the scales of
 * blocks: seven decades, each with twice as many values as the one below, all halfway between even steps.
 */
final class DynamicMap {
    private static final float[] DECADES = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1f};

    private DynamicMap() {}

    /** The values in ascending order, float32 (256). */
    static Tensor values() {
        float[] values = new float[256];
        int next = 0;
        for (int decade = 0; decade < DECADES.length; decade++) {
            float[] steps = evenSteps((1 << decade) + 1);
            for (int i = 0; i + 1 < steps.length; i++) {
                float value = DECADES[decade] * ((steps[i] + steps[i + 1]) / 2);
                values[next++] = value;
                values[next++] = -value;
            }
        }
        values[next++] = 0;
        values[next] = 1;
        Arrays.sort(values);
        return torch.tensor(values);
    }

    private static float[] evenSteps(int count) {
        float[] steps = new float[count];
        try (PointerScope scope = new PointerScope()) {
            Tensor tensor = torch.linspace(new Scalar(0.1), new Scalar(1.0), count);
            new FloatPointer(tensor.data_ptr()).get(steps);
        }
        return steps;
    }
}
