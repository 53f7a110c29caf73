package org.lora4j.model.causal;

/** Hears of each token as it is generated. */
@FunctionalInterface
public interface TokenListener {
    /**
     * A row has a new token.
     *
     * @param row index of the prompt
     * @param token the token, an end token included
     */
    void onToken(int row, long token);
}
