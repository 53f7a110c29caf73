package org.lora4j.serve.http;

import java.util.List;
import org.jspecify.annotations.Nullable;
import org.lora4j.serve.AdapterUse;
import org.lora4j.serve.GenerationRequest;
import org.lora4j.serve.Sampling;

/**
 * What a request asks for, checked.
 *
 * @param chat whether it is a chat; else a completion
 * @param model the name it used
 * @param prompts token ids
 * @param choices continuations of each prompt
 * @param adapters what to apply, none for the base
 * @param maxTokens most tokens of a continuation; -1 for as many as there is room for
 * @param sampling how tokens are chosen, but for their number and the seed
 * @param seed seed of the first continuation, the others count on from it; null for any
 * @param stops texts that end a continuation
 * @param ignoreEnd whether to go on after the end token
 * @param stream whether to send text as it comes
 * @param usage whether a stream ends with a count of tokens
 */
record TextRequest(
        boolean chat,
        String model,
        List<long[]> prompts,
        int choices,
        List<AdapterUse> adapters,
        int maxTokens,
        Sampling sampling,
        @Nullable Long seed,
        List<String> stops,
        boolean ignoreEnd,
        boolean stream,
        boolean usage) {

    /** The request to the engine for one continuation. */
    GenerationRequest generation(int index, int room, long firstSeed) {
        long[] prompt = prompts.get(index / choices);
        int tokens = maxTokens < 0 ? room - prompt.length : maxTokens;
        if (tokens < 1 || prompt.length + (long) tokens > room) {
            throw new ApiException(
                    400,
                    "invalid_request_error",
                    chat ? "messages" : "prompt",
                    "context_length_exceeded",
                    "the prompt has " + prompt.length + " tokens"
                            + (maxTokens < 0 ? "" : " and max_tokens is " + maxTokens)
                            + "; a request may have " + room + " together: shorten one of them");
        }
        Sampling own = new Sampling(
                tokens,
                sampling.temperature(),
                sampling.topP(),
                sampling.topK(),
                firstSeed + index % choices,
                sampling.logprobs());
        return new GenerationRequest(prompt, adapters, own, ignoreEnd);
    }
}
