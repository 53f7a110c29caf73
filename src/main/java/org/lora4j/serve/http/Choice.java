package org.lora4j.serve.http;

import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import org.jspecify.annotations.Nullable;
import org.lora4j.model.causal.Tokenizer;
import org.lora4j.serve.AdapterId;
import org.lora4j.serve.FinishReason;
import org.lora4j.serve.GeneratedToken;
import org.lora4j.serve.Generation;
import org.lora4j.serve.TokenSink;

/** One continuation of a request: hands what the engine tells to the request's thread, which turns it into text. */
final class Choice implements TokenSink {
    /** Something the engine told; the token is null at the end. */
    record Event(
            Choice choice,
            @Nullable GeneratedToken token,
            @Nullable FinishReason end,
            @Nullable Exception failure) {}

    /** A token as it is told: where its text begins in the answer's. */
    record Told(GeneratedToken token, int offset) {}

    /** Text to send, with the tokens that made it. */
    record Piece(String text, List<Told> tokens) {}

    final int index;
    private final BlockingQueue<Event> events;
    private final TextDecoder decoder;
    private final StopText stops;
    private final List<Told> untold = new ArrayList<>();
    private final boolean tells;
    private @Nullable Generation generation;
    /** How much text the tokens have given, and how much of it was sent. */
    private int given;

    private int sent;
    int tokens;
    volatile int cached;
    volatile List<AdapterId> adapters = List.of();
    /** Why it ended, in OpenAI's words. */
    @Nullable
    String finish;

    Choice(int index, TextRequest request, Tokenizer tokenizer, BlockingQueue<Event> events) {
        this.index = index;
        this.events = events;
        this.decoder = new TextDecoder(tokenizer, request.prompts().get(index / request.choices()));
        this.stops = new StopText(request.stops());
        this.tells = request.sampling().logprobs() >= 0;
    }

    void generation(Generation started) {
        generation = started;
    }

    void cancel() {
        if (generation != null) {
            generation.cancel();
        }
    }

    @Override
    public void begun(List<AdapterId> ids, int cachedTokens) {
        adapters = ids;
        cached = cachedTokens;
    }

    @Override
    public void token(GeneratedToken token) {
        events.add(new Event(this, token, null, null));
    }

    @Override
    public void done(FinishReason reason) {
        events.add(new Event(this, null, reason, null));
    }

    @Override
    public void failed(Exception reason) {
        events.add(new Event(this, null, null, reason));
    }

    /** The text a token adds; nothing if it has to wait for more, or the answer has ended. */
    Piece add(GeneratedToken token) {
        if (finish != null) {
            return new Piece("", List.of());
        }
        tokens++;
        if (tells) {
            untold.add(new Told(token, given));
        }
        return send(decoder.add(token.id()));
    }

    private Piece send(String text) {
        given += text.length();
        String ready = stops.add(text);
        sent += ready.length();
        if (stops.stopped()) {
            finish = "stop";
            cancel();
            untold.removeIf(each -> each.offset() >= sent);
        }
        return new Piece(ready, take(stops.stopped() ? Integer.MAX_VALUE : sent));
    }

    /** The text that is left at the end. */
    Piece end(FinishReason reason) {
        if (finish != null) {
            return new Piece("", List.of());
        }
        Piece last = send(decoder.end());
        if (finish != null) {
            return last;
        }
        String rest = stops.end();
        sent += rest.length();
        finish = reason == FinishReason.LENGTH ? "length" : "stop";
        List<Told> all = new ArrayList<>(last.tokens());
        all.addAll(take(Integer.MAX_VALUE));
        return new Piece(last.text() + rest, all);
    }

    /** The tokens whose text began before some place. */
    private List<Told> take(int end) {
        List<Told> ready = untold.stream().filter(each -> each.offset() < end).toList();
        untold.removeAll(ready);
        return ready;
    }
}
