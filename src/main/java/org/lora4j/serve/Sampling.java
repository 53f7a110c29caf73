package org.lora4j.serve;

/**
 * How tokens are chosen.
 *
 * @param maxTokens most tokens to add, at least 1
 * @param temperature divisor of the logits; 0 for the likeliest token at each step
 * @param topP share of probability drawn from: the likeliest tokens that together reach it; in (0, 1]
 * @param topK how many of the likeliest tokens are drawn from; 0 for all
 * @param seed seed of the draws
 * @param logprobs how many of the likeliest tokens to tell the log probabilities of at each step, beside the chosen one's; -1
 *     to tell none at all
 */
public record Sampling(int maxTokens, double temperature, double topP, int topK, long seed, int logprobs) {
    public Sampling {
        PoolOptions.require(maxTokens >= 1, "max_tokens", maxTokens, "at least 1");
        PoolOptions.require(
                temperature >= 0 && temperature <= 100, "temperature", temperature, "at least 0 and at most 100");
        PoolOptions.require(topP > 0 && topP <= 1, "top_p", topP, "greater than 0 and at most 1");
        PoolOptions.require(topK >= 0, "top_k", topK, "at least 1, or 0 for all");
        PoolOptions.require(logprobs >= -1 && logprobs <= 100, "logprobs", logprobs, "at most 100");
    }

    /** The likeliest token at each step. */
    public static Sampling greedy(int maxTokens) {
        return new Sampling(maxTokens, 0, 1, 0, 0, -1);
    }
}
