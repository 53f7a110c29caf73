package org.lora4j.model.causal;

import java.util.Arrays;
import org.jspecify.annotations.Nullable;

/** The architectures {@link CausalLM} builds, under the names Hugging Face gives them. */
public enum Family {
    LLAMA("llama", "LlamaForCausalLM"),
    MISTRAL("mistral", "MistralForCausalLM"),
    QWEN2("qwen2", "Qwen2ForCausalLM"),
    QWEN3("qwen3", "Qwen3ForCausalLM");

    private final String modelType;
    private final String architecture;

    Family(String modelType, String architecture) {
        this.modelType = modelType;
        this.architecture = architecture;
    }

    /** The {@code model_type} of config.json. */
    public String modelType() {
        return modelType;
    }

    /** The entry of {@code architectures} in config.json. */
    public String architecture() {
        return architecture;
    }

    static @Nullable Family ofModelType(String modelType) {
        return Arrays.stream(values())
                .filter(f -> f.modelType.equals(modelType))
                .findFirst()
                .orElse(null);
    }

    static @Nullable Family ofArchitecture(String architecture) {
        return Arrays.stream(values())
                .filter(f -> f.architecture.equals(architecture))
                .findFirst()
                .orElse(null);
    }

    static String supported() {
        return String.join(", ", Arrays.stream(values()).map(Family::modelType).toList());
    }
}
