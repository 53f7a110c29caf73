package org.lora4j.config;

import java.util.Locale;
import org.jspecify.annotations.Nullable;

/**
 * How the factors of a new adapter get their first values: PEFT's {@code init_lora_weights}, kept as it was given.
 *
 * <p>Every string can be represented, so that an adapter made by another version survives reading and writing: loading
 * one needs no initialisation. {@link LoraConfigBuilder#keepUnknown} says which configurations may hold such a string.
 */
public final class InitLoraWeights {
    /** What the value asks for. */
    public enum Kind {
        /** {@code true}: A is Kaiming uniform, B is zero. */
        DEFAULT,
        /** {@code false}: A and B are both random; the adapter changes the output from the start. */
        RANDOM,
        /** {@code "gaussian"}: A is normal with standard deviation 1/r, B is zero. */
        GAUSSIAN,
        ORTHOGONAL,
        PISSA,
        OLORA,
        EVA,
        CORDA,
        LOFTQ,
        LORA_GA,
        MICA,
        /** A string PEFT 0.21 does not know. */
        UNKNOWN
    }

    /** PEFT's {@code true}. */
    public static final InitLoraWeights DEFAULT = new InitLoraWeights(null, Kind.DEFAULT);

    /** PEFT's {@code false}. */
    public static final InitLoraWeights RANDOM = new InitLoraWeights(null, Kind.RANDOM);

    /** PEFT's {@code "gaussian"}. */
    public static final InitLoraWeights GAUSSIAN = new InitLoraWeights("gaussian", Kind.GAUSSIAN);

    /** What can be set, for messages. */
    static final String NAMES =
            "true, false, gaussian, orthogonal, olora, pissa, pissa_niter_<number>, eva, corda, loftq,"
                    + " lora_ga or mica";

    private final @Nullable String name;
    private final Kind kind;

    private InitLoraWeights(@Nullable String name, Kind kind) {
        this.name = name;
        this.kind = kind;
    }

    /** {@code true} is {@link #DEFAULT}, {@code false} is {@link #RANDOM}. */
    public static InitLoraWeights of(boolean value) {
        return value ? DEFAULT : RANDOM;
    }

    /**
     * A named initialisation, such as {@code "gaussian"} or {@code "pissa_niter_16"}.
     *
     * @throws IllegalArgumentException if the name is blank
     */
    public static InitLoraWeights of(String name) {
        if (name.isBlank()) {
            throw Invalid.field("initLoraWeights", name, "must be true, false or a name such as \"gaussian\"");
        }
        return new InitLoraWeights(name, kindOf(name));
    }

    /** PEFT compares some names exactly, some without case and two by their beginning. */
    private static Kind kindOf(String name) {
        if (name.startsWith("pissa")) {
            return name.equals("pissa") || name.matches("pissa_niter_[0-9]{1,6}") ? Kind.PISSA : Kind.UNKNOWN;
        }
        if (name.startsWith("corda")) {
            return Kind.CORDA;
        }
        return switch (name.toLowerCase(Locale.ROOT)) {
            case "gaussian" -> Kind.GAUSSIAN;
            case "olora" -> Kind.OLORA;
            case "mica" -> Kind.MICA;
            default ->
                switch (name) {
                    case "orthogonal" -> Kind.ORTHOGONAL;
                    case "eva" -> Kind.EVA;
                    case "loftq" -> Kind.LOFTQ;
                    case "lora_ga" -> Kind.LORA_GA;
                    default -> Kind.UNKNOWN;
                };
        };
    }

    public Kind kind() {
        return kind;
    }

    /** Whether this initialisation also changes the weight of the base layer. */
    public boolean changesBase() {
        return switch (kind) {
            case PISSA, OLORA, CORDA, LOFTQ, LORA_GA -> true;
            default -> false;
        };
    }

    /** The value in {@code adapter_config.json}: a {@link Boolean} or a {@link String}. */
    public Object jsonValue() {
        return name == null ? (Object) (kind == Kind.DEFAULT) : name;
    }

    @Override
    public boolean equals(@Nullable Object other) {
        return other instanceof InitLoraWeights init && jsonValue().equals(init.jsonValue());
    }

    @Override
    public int hashCode() {
        return jsonValue().hashCode();
    }

    @Override
    public String toString() {
        return jsonValue().toString();
    }
}
