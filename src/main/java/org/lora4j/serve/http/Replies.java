package org.lora4j.serve.http;

import java.nio.charset.StandardCharsets;
import java.time.Instant;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import org.jspecify.annotations.Nullable;
import org.lora4j.model.causal.Tokenizer;
import org.lora4j.serve.GeneratedToken;

/** The shapes of OpenAI's answers to one request. */
final class Replies {
    private final TextRequest request;
    private final Tokenizer tokenizer;
    private final String id;
    private final long created = Instant.now().getEpochSecond();

    Replies(TextRequest request, Tokenizer tokenizer) {
        this.request = request;
        this.tokenizer = tokenizer;
        this.id = (request.chat() ? "chatcmpl-" : "cmpl-")
                + UUID.randomUUID().toString().replace("-", "");
    }

    /** An object of JSON: names and values in turn. */
    static Map<String, @Nullable Object> object(@Nullable Object... namesAndValues) {
        Map<String, @Nullable Object> object = new LinkedHashMap<>();
        for (int i = 0; i < namesAndValues.length; i += 2) {
            object.put(String.valueOf(namesAndValues[i]), namesAndValues[i + 1]);
        }
        return object;
    }

    private Map<String, @Nullable Object> head(boolean chunk) {
        String kind = !request.chat() ? "text_completion" : chunk ? "chat.completion.chunk" : "chat.completion";
        return object("id", id, "object", kind, "created", created, "model", request.model());
    }

    /** A whole answer. */
    Map<String, @Nullable Object> whole(List<Choice> choices, List<String> texts, List<List<Choice.Told>> tokens) {
        List<Map<String, @Nullable Object>> parts = new ArrayList<>();
        for (Choice choice : choices) {
            String text = texts.get(choice.index);
            Map<String, @Nullable Object> part = object("index", choice.index);
            if (request.chat()) {
                part.put("message", object("role", "assistant", "content", text, "refusal", null));
            } else {
                part.put("text", text);
            }
            part.put("logprobs", logprobs(tokens.get(choice.index)));
            part.put("finish_reason", choice.finish);
            parts.add(part);
        }
        Map<String, @Nullable Object> reply = head(false);
        reply.put("choices", parts);
        reply.put("usage", usage(choices));
        return reply;
    }

    /** The first part of a streamed chat, which names the role. */
    Map<String, @Nullable Object> role(Choice choice) {
        return chunk(choice, object("role", "assistant", "content", ""), "", null, null);
    }

    /** A part of a stream. */
    Map<String, @Nullable Object> part(Choice choice, Choice.Piece piece) {
        Object delta = piece.text().isEmpty() && choice.finish != null ? object() : object("content", piece.text());
        return chunk(choice, delta, piece.text(), logprobs(piece.tokens()), choice.finish);
    }

    private Map<String, @Nullable Object> chunk(
            Choice choice, Object delta, String text, @Nullable Object logprobs, @Nullable String finish) {
        Map<String, @Nullable Object> part = object("index", choice.index);
        part.put(request.chat() ? "delta" : "text", request.chat() ? delta : text);
        part.put("logprobs", logprobs);
        part.put("finish_reason", finish);
        Map<String, @Nullable Object> reply = head(true);
        reply.put("choices", List.of(part));
        if (request.usage()) {
            reply.put("usage", null);
        }
        return reply;
    }

    /** The last part of a stream, if it was asked for. */
    Map<String, @Nullable Object> last(List<Choice> choices) {
        Map<String, @Nullable Object> reply = head(true);
        reply.put("choices", List.of());
        reply.put("usage", usage(choices));
        return reply;
    }

    private Map<String, @Nullable Object> usage(List<Choice> choices) {
        int prompt = request.prompts().stream().mapToInt(each -> each.length).sum();
        int added = choices.stream().mapToInt(each -> each.tokens).sum();
        int cached = 0;
        for (Choice choice : choices) {
            cached += choice.index % request.choices() == 0 ? choice.cached : 0;
        }
        return object(
                "prompt_tokens",
                prompt,
                "completion_tokens",
                added,
                "total_tokens",
                prompt + added,
                "prompt_tokens_details",
                object("cached_tokens", cached));
    }

    private @Nullable Object logprobs(List<Choice.Told> tokens) {
        if (request.sampling().logprobs() < 0) {
            return null;
        }
        if (request.chat()) {
            return object(
                    "content",
                    tokens.stream().map(told -> chatToken(told.token())).toList(),
                    "refusal",
                    null);
        }
        List<Map<String, @Nullable Object>> top = new ArrayList<>();
        for (Choice.Told told : tokens) {
            Map<String, @Nullable Object> likeliest = new LinkedHashMap<>();
            told.token().top().forEach(each -> likeliest.putIfAbsent(text(each.id()), each.logprob()));
            likeliest.putIfAbsent(text(told.token().id()), told.token().logprob());
            top.add(likeliest);
        }
        return object(
                "tokens",
                tokens.stream().map(told -> text(told.token().id())).toList(),
                "token_logprobs",
                tokens.stream().map(told -> told.token().logprob()).toList(),
                "top_logprobs",
                top,
                "text_offset",
                tokens.stream().map(Choice.Told::offset).toList());
    }

    private Map<String, @Nullable Object> chatToken(GeneratedToken token) {
        Map<String, @Nullable Object> entry = candidate(token.id(), token.logprob());
        entry.put(
                "top_logprobs",
                token.top().stream()
                        .map(each -> candidate(each.id(), each.logprob()))
                        .toList());
        return entry;
    }

    private Map<String, @Nullable Object> candidate(long token, double logprob) {
        String text = text(token);
        byte[] utf8 = text.getBytes(StandardCharsets.UTF_8);
        List<Integer> bytes = new ArrayList<>();
        for (byte each : utf8) {
            bytes.add(each & 0xFF);
        }
        // A token may be part of a character, whose bytes its text does not tell.
        return object("token", text, "logprob", logprob, "bytes", text.contains("\uFFFD") ? null : bytes);
    }

    private String text(long token) {
        return tokenizer.decode(new long[] {token}, false);
    }
}
