package org.lora4j.config;

/**
 * The defects of PEFT 0.21 that lora4j repeats only when asked to, one by one: to compare with PEFT, or to go on with
 * adapters that were trained around a defect. Without a switch the result is the one the formulas say. docs/parity.md shows both for each.
 */
public enum PeftCompat {
    /** The adapter of a multi-head attention's output projection counts twice, in the forward pass and when merged. */
    ATTENTION_OUTPUT_TWICE,
    /** The A of a convolution pads with zeros and has dilation 1, whatever the base convolution does. */
    CONVOLUTION_IGNORES_OPTIONS,
    /** {@code olora} does not transpose a weight stored as (in, out). */
    OLORA_NOT_TRANSPOSED,
    /** {@code loftq} computes its factors as if the scale were 1. */
    LOFTQ_UNSCALED,
    /** Hot swapping takes rank and alpha from r and lora_alpha, whatever the patterns say. */
    HOTSWAP_IGNORES_PATTERNS,
    /** Tensors in a file that the model has no place for are ignored, and missing ones left as initialised. */
    LENIENT_KEYS,
    /** Loading rounds factors to the type of the base weight, as PEFT does with {@code low_cpu_mem_usage}. */
    LOW_MEMORY_ROUNDS,
    /** A name in modules_to_save means every module whose path ends with it, within a name too: "head" is lm_head. */
    MODULES_TO_SAVE_BY_SUFFIX,
    /** Merging rounds the update to the weight's type before adding it, adapter by adapter. */
    MERGE_ROUNDS_TWICE,
    /** Rows of a mixed batch round the update to the output's type before adding it. */
    ROWS_ROUND_TWICE,
    /** While some active adapters are merged, the others that are active do not apply. */
    PARTIAL_MERGE_DROPS_OTHERS,
    /** A base weight changed by pissa, olora, corda, loftq or lora_ga stays changed while its adapter is off. */
    RESIDUAL_STAYS,
    /**
     * The combinations linear, ties, dare_linear, dare_ties and magnitude_prune work on A and B by themselves, with the
     * roots of the weights: their product has cross terms of different adapters. One adapter is scaled, whatever the type.
     */
    COMBINES_FACTORS,
    /** The sign election of ties and dare_ties does not see the weights, so an adapter that is subtracted votes as if added. */
    ELECTION_IGNORES_WEIGHTS,
    /** A combination keeps use_rslora of its first adapter, so that it counts too much by the root of its rank. */
    COMBINATION_KEEPS_RSLORA,
    /** A combination has no biases on B, and DoRA's magnitudes are those of a new adapter. */
    COMBINATION_DROPS_PARTS
}
