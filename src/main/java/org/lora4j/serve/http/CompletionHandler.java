package org.lora4j.serve.http;

import io.javalin.http.Context;
import io.javalin.http.Handler;
import jakarta.servlet.ServletOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.function.Function;
import org.jspecify.annotations.Nullable;
import org.lora4j.model.causal.Tokenizer;
import org.lora4j.serve.AdapterId;
import org.lora4j.serve.AdapterUse;
import org.lora4j.serve.Engine;
import org.lora4j.serve.FinishReason;
import org.lora4j.serve.GenerationRequest;

/** Answers completions or chats, whole or as a stream of events, on the request's own thread. */
final class CompletionHandler implements Handler {
    /** How often a stream without tokens says that it lives, which is also how a lost client is noticed. */
    private static final long SILENCE_SECONDS = 5;

    private final Engine engine;
    private final Tokenizer tokenizer;
    private final Json json;
    private final Metrics metrics;
    private final Function<Fields, TextRequest> parser;

    CompletionHandler(
            Engine engine, Tokenizer tokenizer, Json json, Metrics metrics, Function<Fields, TextRequest> parser) {
        this.engine = engine;
        this.tokenizer = tokenizer;
        this.json = json;
        this.metrics = metrics;
        this.parser = parser;
    }

    /** What one request has going. */
    private final class Run {
        final Context context;
        final TextRequest request;
        final Replies replies;
        final BlockingQueue<Choice.Event> events = new LinkedBlockingQueue<>();
        final List<Choice> choices = new ArrayList<>();
        final long start = System.nanoTime();
        long lastToken;

        Run(Context context, TextRequest request) {
            this.context = context;
            this.request = request;
            this.replies = new Replies(request, tokenizer);
        }

        void submit() {
            int count = request.prompts().size() * request.choices();
            int room = engine.options().maxTokens();
            long seed = request.seed() == null ? ThreadLocalRandom.current().nextLong() : request.seed();
            List<GenerationRequest> generations = new ArrayList<>();
            for (int i = 0; i < count; i++) {
                generations.add(request.generation(i, room, seed));
            }
            for (GenerationRequest generation : generations) {
                Choice choice = new Choice(choices.size(), request, tokenizer, events);
                choice.generation(engine.submit(generation, choice));
                choices.add(choice);
            }
        }

        /** The next event, or null after a time without one. */
        Choice.@Nullable Event next() throws InterruptedException {
            Choice.Event event = events.poll(SILENCE_SECONDS, TimeUnit.SECONDS);
            if (event != null && event.token() != null) {
                long now = System.nanoTime();
                if (lastToken == 0) {
                    metrics.firstToken(now - start);
                } else if (choices.size() == 1) {
                    metrics.nextToken(now - lastToken);
                }
                lastToken = now;
            }
            return event;
        }

        void cancel() {
            choices.forEach(Choice::cancel);
        }

        /** Says which weights answer, for logs and for proxies that send a name to the same replica. */
        void headers() {
            if (!request.adapters().isEmpty()) {
                context.header(
                        ApiServer.ADAPTER_HEADER,
                        Json.ascii(String.join(
                                "+",
                                request.adapters().stream()
                                        .map(AdapterUse::name)
                                        .toList())));
            }
            List<AdapterId> ids = choices.isEmpty() ? List.of() : choices.get(0).adapters;
            if (!ids.isEmpty()) {
                context.header(
                        ApiServer.WEIGHTS_HEADER,
                        String.join(
                                "+",
                                ids.stream()
                                        .map(id ->
                                                id.version() + "-" + id.hash().substring(0, 12))
                                        .toList()));
            }
        }
    }

    @Override
    public void handle(Context context) throws Exception {
        TextRequest request = parser.apply(json.body(context));
        Run run = new Run(context, request);
        try {
            run.submit();
            if (request.stream()) {
                stream(run);
            } else {
                answer(run);
            }
        } catch (Throwable e) {
            run.cancel();
            throw e;
        }
    }

    private void answer(Run run) throws Exception {
        List<StringBuilder> texts = new ArrayList<>();
        List<List<Choice.Told>> tokens = new ArrayList<>();
        run.choices.forEach(choice -> {
            texts.add(new StringBuilder());
            tokens.add(new ArrayList<>());
        });
        int open = run.choices.size();
        while (open > 0) {
            Choice.Event event = run.next();
            if (event == null) {
                continue;
            }
            if (event.failure() != null) {
                throw event.failure();
            }
            Choice choice = event.choice();
            Choice.Piece piece = piece(event);
            texts.get(choice.index).append(piece.text());
            tokens.get(choice.index).addAll(piece.tokens());
            open -= event.token() == null ? 1 : 0;
        }
        run.headers();
        json.reply(
                run.context,
                200,
                run.replies.whole(
                        run.choices, texts.stream().map(StringBuilder::toString).toList(), tokens));
    }

    private static Choice.Piece piece(Choice.Event event) {
        if (event.token() != null) {
            return event.choice().add(event.token());
        }
        return event.choice().end(event.end() == null ? FinishReason.STOP : event.end());
    }

    private void stream(Run run) throws Exception {
        Choice.Event first = run.next();
        if (first != null && first.failure() != null) {
            throw first.failure();
        }
        run.context.status(200).contentType("text/event-stream");
        run.context.header("Cache-Control", "no-cache").header("X-Accel-Buffering", "no");
        run.headers();
        ServletOutputStream out = run.context.res().getOutputStream();
        try {
            boolean complete = send(run, first, out);
            if (complete && run.request.usage()) {
                send(out, json.write(run.replies.last(run.choices)));
            }
            send(out, "[DONE]");
        } catch (IOException | UncheckedIOException e) {
            // The client has gone: nobody hears what follows.
            run.cancel();
            metrics.disconnected();
        }
    }

    /** False if it failed on the way, which the client is told in the stream. */
    private boolean send(Run run, Choice.@Nullable Event first, ServletOutputStream out) throws Exception {
        boolean[] begun = new boolean[run.choices.size()];
        boolean[] finished = new boolean[run.choices.size()];
        int open = run.choices.size();
        Choice.Event event = first;
        while (open > 0) {
            if (event == null) {
                out.write(": waiting\n\n".getBytes(StandardCharsets.US_ASCII));
                out.flush();
            } else if (event.failure() != null) {
                run.cancel();
                send(out, json.write(ApiServer.explain(event.failure()).body()));
                return false;
            } else {
                Choice choice = event.choice();
                if (run.request.chat() && !begun[choice.index]) {
                    send(out, json.write(run.replies.role(choice)));
                }
                begun[choice.index] = true;
                Choice.Piece piece = piece(event);
                boolean ends = choice.finish != null && !finished[choice.index];
                if (ends || !piece.text().isEmpty() || !piece.tokens().isEmpty()) {
                    send(out, json.write(run.replies.part(choice, piece)));
                }
                finished[choice.index] |= ends;
                open -= event.token() == null ? 1 : 0;
            }
            event = open > 0 ? run.next() : null;
        }
        return true;
    }

    private static void send(ServletOutputStream out, String data) throws IOException {
        out.write(("data: " + data + "\n\n").getBytes(StandardCharsets.UTF_8));
        out.flush();
    }
}
