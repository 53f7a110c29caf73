package org.lora4j.serve;

/** Receives a continuation, on the engine's thread: it must be quick. After {@code done} or {@code failed} nothing comes. */
public interface TokenSink {
    /** The request has its adapters and begins; {@code cached} tokens of its prompt need not be computed. */
    default void begun(java.util.List<AdapterId> adapters, int cached) {}

    void token(GeneratedToken token);

    void done(FinishReason reason);

    void failed(Exception reason);
}
