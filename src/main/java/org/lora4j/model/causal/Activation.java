package org.lora4j.model.causal;

import static org.bytedeco.pytorch.global.torch.gelu;
import static org.bytedeco.pytorch.global.torch.relu;
import static org.bytedeco.pytorch.global.torch.sigmoid;
import static org.bytedeco.pytorch.global.torch.silu;

import java.util.Arrays;
import java.util.List;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.jspecify.annotations.Nullable;

/** The gate's activation in the feed-forward block ({@code hidden_act}). */
public enum Activation {
    /** {@code x sigmoid(x)}. */
    SILU("silu", "swish"),
    /** {@code x Phi(x)} with the error function. */
    GELU("gelu", "gelu_python"),
    /** GELU by the tanh approximation. */
    GELU_TANH("gelu_pytorch_tanh", "gelu_new", "gelu_python_tanh", "gelu_fast"),
    /** {@code x sigmoid(1.702 x)}. */
    QUICK_GELU("quick_gelu"),
    RELU("relu");

    private final List<String> names;

    Activation(String... names) {
        this.names = List.of(names);
    }

    static @Nullable Activation of(String name) {
        return Arrays.stream(values())
                .filter(a -> a.names.contains(name))
                .findFirst()
                .orElse(null);
    }

    static String supported() {
        return String.join(
                ", ", Arrays.stream(values()).flatMap(a -> a.names.stream()).toList());
    }

    Tensor apply(Tensor x) {
        return switch (this) {
            case SILU -> silu(x);
            case GELU -> gelu(x);
            case GELU_TANH -> gelu(x, "tanh");
            case QUICK_GELU -> x.mul(sigmoid(x.mul(new Scalar(1.702))));
            case RELU -> relu(x);
        };
    }
}
