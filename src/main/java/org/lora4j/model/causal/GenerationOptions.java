package org.lora4j.model.causal;

import java.util.Set;
import org.jspecify.annotations.Nullable;

/**
 * How {@link CausalLM#generate} continues prompts. Start from {@link #greedy(int)} or {@link #sampled(int, long)}.
 *
 * @param maxNewTokens most tokens to add to a row, at least 1
 * @param sample whether tokens are drawn by their probability; otherwise the likeliest is taken
 * @param temperature divisor of the logits before sampling, greater than 0
 * @param topK how many of the likeliest tokens sampling draws from; 0 for all
 * @param topP share of probability sampling draws from: the likeliest tokens that together reach it; in (0, 1]
 * @param repetitionPenalty divisor of positive and factor of negative logits of tokens that are in the row already, prompt
 *     included (Keskar et al. 2019); 1 for none
 * @param seed seed of the draws; each row draws on its own, so that it does not depend on the other rows
 * @param eosTokenIds tokens after which a row ends; null for the model's own, empty for none
 */
public record GenerationOptions(
        int maxNewTokens,
        boolean sample,
        double temperature,
        int topK,
        double topP,
        double repetitionPenalty,
        long seed,
        @Nullable Set<Long> eosTokenIds) {

    public GenerationOptions {
        CausalConfig.require(maxNewTokens >= 1, "maxNewTokens", maxNewTokens, "at least 1");
        CausalConfig.require(
                temperature > 0 && Double.isFinite(temperature),
                "temperature",
                temperature,
                "a finite number greater than 0; use greedy for the likeliest token");
        CausalConfig.require(topK >= 0, "topK", topK, "at least 1, or 0 for all tokens");
        CausalConfig.require(topP > 0 && topP <= 1, "topP", topP, "greater than 0 and at most 1");
        CausalConfig.require(
                repetitionPenalty > 0 && Double.isFinite(repetitionPenalty),
                "repetitionPenalty",
                repetitionPenalty,
                "a finite number greater than 0");
        eosTokenIds = eosTokenIds == null ? null : Set.copyOf(eosTokenIds);
    }

    /** The likeliest token at each step, up to the model's end token. */
    public static GenerationOptions greedy(int maxNewTokens) {
        return new GenerationOptions(maxNewTokens, false, 1, 0, 1, 1, 0, null);
    }

    /** Tokens drawn from the model's distribution, up to the model's end token. */
    public static GenerationOptions sampled(int maxNewTokens, long seed) {
        return new GenerationOptions(maxNewTokens, true, 1, 0, 1, 1, seed, null);
    }

    public GenerationOptions withTemperature(double value) {
        return new GenerationOptions(maxNewTokens, sample, value, topK, topP, repetitionPenalty, seed, eosTokenIds);
    }

    public GenerationOptions withTopK(int value) {
        return new GenerationOptions(
                maxNewTokens, sample, temperature, value, topP, repetitionPenalty, seed, eosTokenIds);
    }

    public GenerationOptions withTopP(double value) {
        return new GenerationOptions(
                maxNewTokens, sample, temperature, topK, value, repetitionPenalty, seed, eosTokenIds);
    }

    public GenerationOptions withRepetitionPenalty(double value) {
        return new GenerationOptions(maxNewTokens, sample, temperature, topK, topP, value, seed, eosTokenIds);
    }

    /** Ends rows at these tokens instead of the model's own; none for no end but {@code maxNewTokens}. */
    public GenerationOptions withEosTokenIds(Long... ids) {
        return new GenerationOptions(
                maxNewTokens, sample, temperature, topK, topP, repetitionPenalty, seed, Set.of(ids));
    }
}
