package org.lora4j.train;

import java.io.IOException;
import java.nio.charset.CharacterCodingException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import org.lora4j.train.ChatTemplate.Message;
import tools.jackson.core.JacksonException;
import tools.jackson.databind.DeserializationFeature;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/** What lines of JSON may hold. Every defect names the file, the line and the reason. */
final class Records {
    private static final JsonMapper JSON = JsonMapper.builder()
            .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
            .build();
    private static final Set<String> ROLES = Set.of("system", "user", "assistant");
    private static final String FORMS =
            ": a line is {\"prompt\": \"...\", \"completion\": \"...\"}, {\"text\": \"...\"}"
                    + " or {\"messages\": [{\"role\": \"user\", \"content\": \"...\"}, ...]}";
    private static final String PAIR = ": a line is {\"prompt\": \"...\", \"chosen\": \"...\", \"rejected\": \"...\"}";

    private Records() {}

    /** A line. */
    interface Visitor {
        void line(JsonNode object, String where);
    }

    /** Visits the lines that are not empty. */
    static void read(Path file, Visitor visitor) throws IOException {
        int number = 0;
        int found = 0;
        try (var reader = Files.newBufferedReader(file)) {
            for (String line = reader.readLine(); line != null; line = reader.readLine()) {
                number++;
                if (!line.isBlank()) {
                    found++;
                    String where = file + ", line " + number;
                    visitor.line(parse(line, where), where);
                }
            }
        } catch (CharacterCodingException e) {
            throw new IllegalArgumentException(
                    file + ", line " + (number + 1) + " or near it is not UTF-8: convert the file", e);
        } catch (IOException e) {
            throw new IOException("cannot read the examples of " + file + ": check that it exists", e);
        }
        if (found == 0) {
            throw new IllegalArgumentException(file + " has no examples: write at least one line of JSON");
        }
    }

    /** A line of JSON. */
    static JsonNode parse(String line, String where) {
        try {
            return JSON.readTree(line);
        } catch (JacksonException e) {
            throw new IllegalArgumentException(where + " is not JSON (" + e.getOriginalMessage() + ")" + FORMS, e);
        }
    }

    /** Refuses a line that is none of the forms. */
    static void check(JsonNode object, String where) {
        if (object.has("messages")) {
            messages(object, where);
        } else if (object.has("text")) {
            text(object, where);
        } else if (object.has("prompt") || object.has("completion")) {
            example(object, where);
        } else {
            throw new IllegalArgumentException(
                    where + " has neither \"prompt\" and \"completion\" nor \"text\" nor \"messages\"" + FORMS);
        }
    }

    static String text(JsonNode object, String name, String where, String rule) {
        JsonNode value = object.get(name);
        String text = value == null || !value.isString() ? null : value.stringValue();
        if (text == null) {
            throw new IllegalArgumentException(where + " lacks the text \"" + name + "\"" + rule);
        }
        return text;
    }

    static Example example(JsonNode object, String where) {
        return new Example(text(object, "prompt", where, FORMS), text(object, "completion", where, FORMS));
    }

    static String text(JsonNode object, String where) {
        String text = text(object, "text", where, FORMS);
        if (text.isEmpty()) {
            throw new IllegalArgumentException(where + " has an empty \"text\": remove the line");
        }
        return text;
    }

    static List<Message> messages(JsonNode object, String where) {
        JsonNode list = object.get("messages");
        if (list == null || !list.isArray() || list.isEmpty()) {
            throw new IllegalArgumentException(where + " has no list \"messages\" with an element" + FORMS);
        }
        List<Message> messages = new ArrayList<>();
        for (JsonNode each : list) {
            String what = where + ", message " + (messages.size() + 1);
            String role = text(each, "role", what, FORMS);
            if (!ROLES.contains(role)) {
                throw new IllegalArgumentException(what + " has the role \"" + role + "\": use one of "
                        + ROLES.stream().sorted().toList());
            }
            messages.add(new Message(role, text(each, "content", what, FORMS)));
        }
        if (messages.stream().noneMatch(each -> each.role().equals("assistant"))) {
            throw new IllegalArgumentException(
                    where + " has no message of the role \"assistant\", so nothing to learn");
        }
        return messages;
    }

    /** Prompt, chosen and rejected. */
    static String[] pair(JsonNode object, String where) {
        return new String[] {
            text(object, "prompt", where, PAIR),
            text(object, "chosen", where, PAIR),
            text(object, "rejected", where, PAIR)
        };
    }
}
