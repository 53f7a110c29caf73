package org.lora4j.serve.http;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.jspecify.annotations.Nullable;
import org.lora4j.model.causal.Tokenizer;
import org.lora4j.serve.AdapterUse;
import org.lora4j.serve.Sampling;

/**
 * Reads the bodies of completions and chats. Fields of OpenAI's that would change the answer and are not supported are
 * refused; others that are not known are ignored.
 */
final class RequestParser {
    /** As OpenAI has it. */
    private static final int COMPLETION_TOKENS = 16;

    private static final int MOST_LOGPROBS = 20;
    private static final int MOST_STOPS = 16;
    private static final int LONGEST_STOP = 1000;
    private static final int MOST_ADAPTERS = 8;

    private static final Set<String> UNSUPPORTED = Set.of(
            "suffix",
            "tools",
            "functions",
            "tool_choice",
            "function_call",
            "audio",
            "logit_bias",
            "web_search_options");

    private final ServerOptions options;
    private final Tokenizer tokenizer;

    RequestParser(ServerOptions options, Tokenizer tokenizer) {
        this.options = options;
        this.tokenizer = tokenizer;
    }

    TextRequest completion(Fields fields) {
        if (fields.flag("echo")) {
            throw ApiException.unsupported("echo", "echo is not supported: put the prompt before the answer yourself");
        }
        long best = fields.integer("best_of", 1, options.maxChoices(), 1);
        long n = fields.integer("n", 1, options.maxChoices(), 1);
        if (best != 1 && best != n) {
            throw ApiException.unsupported("best_of", "best_of is " + best + " but only n (" + n + ") is supported");
        }
        List<long[]> prompts = prompts(fields);
        int logprobs = (int) fields.integer("logprobs", 0, MOST_LOGPROBS, -1);
        int tokens = (int) fields.integer("max_tokens", 1, Integer.MAX_VALUE, COMPLETION_TOKENS);
        return request(fields, false, prompts, (int) n, tokens, logprobs);
    }

    TextRequest chat(Fields fields) {
        Fields format = fields.object("response_format");
        if (format != null && !"text".equals(format.text("type"))) {
            throw ApiException.unsupported(
                    "response_format", "response_format is not supported but for {\"type\": \"text\"}");
        }
        List<ChatFormat.Message> messages = new ArrayList<>();
        for (Fields message : fields.objects("messages")) {
            messages.add(new ChatFormat.Message(role(message), content(message)));
        }
        if (messages.isEmpty()) {
            throw ApiException.invalid("messages", "messages is empty: give at least one");
        }
        ChatFormat chat = options.chatFormat();
        long[] prompt = tokenizer.encode(chat.prompt(messages), chat.specialTokens());
        int top = (int) fields.integer("top_logprobs", 0, MOST_LOGPROBS, 0);
        boolean logprobs = fields.flag("logprobs");
        if (top > 0 && !logprobs) {
            throw ApiException.invalid("top_logprobs", "top_logprobs needs logprobs to be true");
        }
        long tokens = fields.integer("max_tokens", 1, Integer.MAX_VALUE, -1);
        tokens = fields.integer("max_completion_tokens", 1, Integer.MAX_VALUE, tokens);
        int n = (int) fields.integer("n", 1, options.maxChoices(), 1);
        return request(fields, true, List.of(checked(prompt)), n, (int) tokens, logprobs ? top : -1);
    }

    private static String role(Fields message) {
        String role = message.requiredText("role");
        return switch (role) {
            case "system", "user", "assistant" -> role;
            case "developer" -> "system";
            default ->
                throw ApiException.invalid(
                        message.name("role"),
                        message.name("role") + " is \"" + role + "\" but must be system, developer, user or assistant");
        };
    }

    private static String content(Fields message) {
        if (message.value("content") instanceof String text) {
            return text;
        }
        StringBuilder text = new StringBuilder();
        for (Fields part : message.objects("content")) {
            if (!"text".equals(part.text("type"))) {
                throw ApiException.unsupported(part.name("type"), "only parts of type \"text\" are supported");
            }
            String words = part.text("text");
            text.append(words == null ? "" : words);
        }
        if (text.isEmpty()) {
            throw ApiException.invalid(
                    message.name("content"), message.name("content") + " is missing: give it as text");
        }
        return text.toString();
    }

    private List<long[]> prompts(Fields fields) {
        Object prompt = fields.value("prompt");
        List<long[]> prompts = new ArrayList<>();
        if (prompt instanceof String text) {
            prompts.add(tokenizer.encode(text, true));
        } else if (prompt instanceof List<?> list && !list.isEmpty()) {
            if (list.get(0) instanceof Number) {
                prompts.add(ids(fields, list));
            } else if (list.size() <= options.maxChoices()) {
                for (Object each : list) {
                    prompts.add(
                            each instanceof String text
                                    ? tokenizer.encode(text, true)
                                    : ids(fields, each instanceof List<?> inner ? inner : List.of()));
                }
            } else {
                throw ApiException.invalid(
                        "prompt", "prompt has " + list.size() + " texts but may have " + options.maxChoices());
            }
        } else {
            throw ApiException.invalid("prompt", "prompt must be a text, a list of texts, token ids or lists of them");
        }
        prompts.forEach(RequestParser::checked);
        return prompts;
    }

    private static long[] ids(Fields fields, List<?> list) {
        long[] ids = new long[list.size()];
        for (int i = 0; i < ids.length; i++) {
            Long id = Fields.whole(list.get(i));
            if (id == null) {
                throw fields.wrong("prompt", list.get(i), "a text, a list of texts, token ids or lists of them");
            }
            ids[i] = id;
        }
        return ids;
    }

    private static long[] checked(long[] prompt) {
        if (prompt.length == 0) {
            throw ApiException.invalid("prompt", "a prompt is empty: it needs at least one token");
        }
        return prompt;
    }

    private TextRequest request(Fields fields, boolean chat, List<long[]> prompts, int n, int tokens, int logprobs) {
        for (String field : UNSUPPORTED) {
            Object value = fields.value(field);
            boolean empty = value == null
                    || "none".equals(value)
                    || "".equals(value)
                    || (value instanceof List<?> list && list.isEmpty())
                    || (value instanceof Map<?, ?> map && map.isEmpty());
            if (!empty) {
                throw ApiException.unsupported(field, field + " is not supported: leave it out");
            }
        }
        for (String field : List.of("frequency_penalty", "presence_penalty")) {
            if (fields.number(field, 0) != 0) {
                throw ApiException.unsupported(field, field + " is not supported: leave it out or 0");
            }
        }
        if ((long) prompts.size() * n > options.maxChoices()) {
            throw ApiException.invalid(
                    "n",
                    prompts.size() + " prompts with n = " + n + " are more than " + options.maxChoices()
                            + " answers: ask for fewer");
        }
        double temperature = within(fields, "temperature", 1, 0, 100);
        double topP = fields.number("top_p", 1);
        if (!(topP > 0 && topP <= 1)) {
            throw fields.wrong("top_p", topP, "greater than 0 and at most 1");
        }
        int topK = (int) Math.max(0, fields.integer("top_k", -1, Integer.MAX_VALUE, 0));
        String model = fields.text("model");
        model = model == null || model.isEmpty() ? options.modelName() : model;
        Fields streaming = fields.object("stream_options");
        return new TextRequest(
                chat,
                model,
                prompts,
                n,
                adapters(fields, model),
                tokens,
                new Sampling(1, temperature, topP, topK, 0, logprobs),
                fields.seed("seed"),
                stops(fields),
                fields.flag("ignore_eos"),
                fields.flag("stream"),
                streaming != null && streaming.flag("include_usage"));
    }

    private static double within(Fields fields, String field, double absent, double least, double most) {
        double value = fields.number(field, absent);
        if (!(value >= least && value <= most)) {
            throw fields.wrong(field, value, "a number from " + least + " to " + most);
        }
        return value;
    }

    /** The adapter the model's name means, and those of {@code "adapters": [{"name": ..., "scale": ...}]}. */
    private List<AdapterUse> adapters(Fields fields, String model) {
        List<AdapterUse> uses = new ArrayList<>();
        if (!model.equals(options.modelName())) {
            uses.add(AdapterUse.of(model));
        }
        for (Fields each : fields.objects("adapters")) {
            uses.add(new AdapterUse(each.requiredText("name"), within(each, "scale", 1, -1000, 1000)));
        }
        if (uses.size() > MOST_ADAPTERS) {
            throw ApiException.invalid(
                    "adapters", uses.size() + " adapters in one request are more than " + MOST_ADAPTERS);
        }
        return uses;
    }

    private static List<String> stops(Fields fields) {
        @Nullable Object stop = fields.value("stop");
        List<?> values = stop == null ? List.of() : stop instanceof List<?> list ? list : List.of(stop);
        List<String> stops = new ArrayList<>();
        for (Object value : values) {
            if (!(value instanceof String text) || text.isEmpty() || text.length() > LONGEST_STOP) {
                throw fields.wrong(
                        "stop", value, "a text or a list of texts, each of 1 to " + LONGEST_STOP + " characters");
            }
            stops.add(text);
        }
        if (stops.size() > MOST_STOPS) {
            throw ApiException.invalid("stop", stops.size() + " stop texts are more than " + MOST_STOPS);
        }
        return stops;
    }
}
