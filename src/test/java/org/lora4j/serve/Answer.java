package org.lora4j.serve;

import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;

/** Collects what comes of a request. */
final class Answer implements TokenSink {
    final List<GeneratedToken> tokens = new ArrayList<>();
    final CompletableFuture<FinishReason> end = new CompletableFuture<>();
    volatile List<AdapterId> adapters = List.of();
    volatile int cached;
    volatile Runnable onToken = () -> {};

    @Override
    public void begun(List<AdapterId> ids, int tokensCached) {
        adapters = ids;
        cached = tokensCached;
    }

    @Override
    public void token(GeneratedToken token) {
        tokens.add(token);
        onToken.run();
    }

    @Override
    public void done(FinishReason reason) {
        end.complete(reason);
    }

    @Override
    public void failed(Exception reason) {
        end.completeExceptionally(reason);
    }

    FinishReason await() throws Exception {
        return end.get(60, TimeUnit.SECONDS);
    }

    long[] ids() {
        return tokens.stream().mapToLong(GeneratedToken::id).toArray();
    }
}
