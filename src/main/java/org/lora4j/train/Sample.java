package org.lora4j.train;

/** A tokenised example: prompt, completion and end-of-text token. */
final class Sample {
    private final long[] ids;
    private final int promptLength;

    /**
     * @param ids all tokens
     * @param promptLength how many of them are the prompt, which carries no loss
     */
    Sample(long[] ids, int promptLength) {
        this.ids = ids;
        this.promptLength = promptLength;
    }

    long[] ids() {
        return ids;
    }

    int promptLength() {
        return promptLength;
    }
}
