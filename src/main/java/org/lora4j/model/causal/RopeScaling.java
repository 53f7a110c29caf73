package org.lora4j.model.causal;

/**
 * How rotary position embeddings turn positions into angles.
 *
 * <p>Angle j of position p is {@code p * f_j} with {@code f_j = theta^(-2j / headDim)}; {@code LINEAR} divides all
 * frequencies by {@code factor}; {@code LLAMA3} divides the low ones and blends the middle ones, as Llama 3.1 does.
 *
 * @param type the rule
 * @param theta base of the frequencies, greater than 0
 * @param factor divisor of the frequencies (linear, llama3), at least 1; else 1
 * @param lowFreqFactor {@code low_freq_factor} (llama3), else 1
 * @param highFreqFactor {@code high_freq_factor} (llama3), greater than {@code lowFreqFactor}, else 4
 * @param originalMaxPositions {@code original_max_position_embeddings} (llama3), else 0
 */
public record RopeScaling(
        Type type, double theta, double factor, double lowFreqFactor, double highFreqFactor, int originalMaxPositions) {

    /** The rules {@link CausalLM} knows, by their {@code rope_type}. */
    public enum Type {
        DEFAULT,
        LINEAR,
        LLAMA3
    }

    public RopeScaling {
        require(theta > 0 && Double.isFinite(theta), "rope_theta", theta, "a finite number greater than 0");
        if (type != Type.DEFAULT) {
            require(factor >= 1 && Double.isFinite(factor), "rope factor", factor, "a finite number of at least 1");
        }
        if (type == Type.LLAMA3) {
            require(lowFreqFactor > 0, "low_freq_factor", lowFreqFactor, "greater than 0");
            require(
                    highFreqFactor > lowFreqFactor,
                    "high_freq_factor",
                    highFreqFactor,
                    "greater than low_freq_factor (" + lowFreqFactor + ")");
            require(originalMaxPositions > 0, "original_max_position_embeddings", originalMaxPositions, "at least 1");
        }
    }

    /** Plain rotary embeddings. */
    public static RopeScaling plain(double theta) {
        return new RopeScaling(Type.DEFAULT, theta, 1, 1, 4, 0);
    }

    /** All frequencies divided by one factor. */
    public static RopeScaling linear(double theta, double factor) {
        return new RopeScaling(Type.LINEAR, theta, factor, 1, 4, 0);
    }

    /**
     * Scales the frequencies {@code theta^(-2j / headDim)} by the rule. Computed in float32, in the order of
     * Hugging Face, so that the angles agree to the last bit.
     */
    float[] scale(float[] frequencies) {
        float[] scaled = frequencies.clone();
        switch (type) {
            case DEFAULT -> {}
            case LINEAR -> {
                for (int j = 0; j < scaled.length; j++) {
                    scaled[j] /= (float) factor;
                }
            }
            case LLAMA3 -> {
                float longest = (float) (originalMaxPositions / lowFreqFactor);
                float shortest = (float) (originalMaxPositions / highFreqFactor);
                for (int j = 0; j < scaled.length; j++) {
                    scaled[j] = llama3(scaled[j], shortest, longest);
                }
            }
        }
        return scaled;
    }

    private float llama3(float frequency, float shortest, float longest) {
        float wavelength = (1f / frequency) * (float) (2 * Math.PI);
        if (wavelength < shortest) {
            return frequency;
        }
        if (wavelength > longest) {
            return frequency / (float) factor;
        }
        float smooth = ((1f / wavelength) * originalMaxPositions - (float) lowFreqFactor)
                / (float) (highFreqFactor - lowFreqFactor);
        return (1f - smooth) * frequency / (float) factor + smooth * frequency;
    }

    private static void require(boolean ok, String field, double value, String rule) {
        if (!ok) {
            throw new IllegalArgumentException(field + " is " + value + " but must be " + rule);
        }
    }
}
