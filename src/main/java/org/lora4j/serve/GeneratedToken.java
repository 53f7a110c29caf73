package org.lora4j.serve;

import java.util.List;

/**
 * A token that was added.
 *
 * @param id the token
 * @param logprob its log probability, if log probabilities were asked for; else 0
 * @param top the likeliest tokens, the likeliest first, as many as were asked for
 */
public record GeneratedToken(long id, double logprob, List<Candidate> top) {
    /** A token with its log probability. */
    public record Candidate(long id, double logprob) {}
}
