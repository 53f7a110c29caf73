package org.lora4j.serve.http;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.ByteArrayOutputStream;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.serve.EngineOptions;
import org.lora4j.serve.PoolOptions;

/** No body makes the server fail: what is wrong is the client's fault and told so, and the next request is answered. */
class FuzzedBodiesTest {
    private static final int BODIES = 400;
    private static final List<String> PATHS =
            List.of("/v1/completions", "/v1/chat/completions", "/v1/load_lora_adapter", "/v1/unload_lora_adapter");
    private static final List<String> FIELDS = List.of(
            "model",
            "prompt",
            "messages",
            "max_tokens",
            "temperature",
            "top_p",
            "top_k",
            "n",
            "seed",
            "stop",
            "logprobs",
            "top_logprobs",
            "stream",
            "stream_options",
            "adapters",
            "echo",
            "best_of",
            "lora_name",
            "lora_path",
            "load_inplace",
            "pinned",
            "ignore_eos",
            "max_completion_tokens",
            "response_format",
            "tools",
            "logit_bias");
    private static final List<String> WORDS = List.of(
            "",
            "a",
            "base",
            "one",
            "two",
            "../one",
            "/etc/passwd",
            "\u0000",
            "\uD83D\uDE00",
            "</s>",
            "<s>",
            "user",
            "system",
            "text",
            "%00",
            "one/../two",
            "name",
            "role",
            "content",
            "Define: river\n",
            "\u202E",
            "[INST]");

    @TempDir
    Path folder;

    private static Object value(Random random, int depth) {
        return switch (random.nextInt(depth > 3 ? 8 : 11)) {
            case 0 -> WORDS.get(random.nextInt(WORDS.size()));
            case 1 -> random.nextInt(8);
            case 2 -> random.nextLong();
            case 3 -> random.nextGaussian() * Math.pow(10, random.nextInt(30));
            case 4 -> random.nextBoolean();
            case 5 -> Map.of();
            case 6 -> List.of();
            case 7 -> WORDS.get(random.nextInt(WORDS.size())).repeat(random.nextInt(40));
            case 8 -> {
                List<Object> list = new ArrayList<>();
                for (int i = random.nextInt(5); i >= 0; i--) {
                    list.add(value(random, depth + 1));
                }
                yield list;
            }
            default -> object(random, depth + 1);
        };
    }

    private static Map<String, Object> object(Random random, int depth) {
        Map<String, Object> object = new LinkedHashMap<>();
        List<String> names = random.nextInt(3) == 0 ? WORDS : FIELDS;
        for (int i = random.nextInt(6); i > 0; i--) {
            object.put(names.get(random.nextInt(names.size())), value(random, depth));
        }
        return object;
    }

    /** A body that is right but for a few fields, or a few bytes, or is not even JSON. */
    private static byte[] body(Random random) {
        Map<String, Object> object = new LinkedHashMap<>();
        if (random.nextInt(4) > 0) {
            object.put("model", WORDS.get(random.nextInt(6)));
            object.put("prompt", "Define: river\n");
            object.put("messages", List.of(Map.of("role", "user", "content", "river")));
            object.put("max_tokens", 3);
            object.put("lora_name", WORDS.get(random.nextInt(6)));
            object.put("lora_path", WORDS.get(random.nextInt(6)));
        }
        object.putAll(object(random, 0));
        byte[] json = TestServer.JSON.writeValueAsString(object).getBytes(StandardCharsets.UTF_8);
        if (random.nextInt(4) == 0) {
            for (int i = 1 + random.nextInt(4); i > 0; i--) {
                json[random.nextInt(json.length)] = (byte) random.nextInt(256);
            }
        }
        if (random.nextInt(20) == 0) {
            random.nextBytes(json);
        }
        return json;
    }

    @ParameterizedTest
    @ValueSource(longs = {1, 2})
    void noBodyMakesItFail(long seed) throws Exception {
        Random random = new Random(seed);
        try (TestServer server = new TestServer(
                folder, EngineOptions.of(60), PoolOptions.of(64L << 20), options -> options.withLimits(20_000, 4))) {
            Map<Integer, Integer> statuses = new LinkedHashMap<>();
            for (int i = 0; i < BODIES; i++) {
                String path = PATHS.get(random.nextInt(PATHS.size()));
                byte[] body = body(random);
                HttpRequest request = HttpRequest.newBuilder(server.uri(path))
                        .header("Content-Type", "application/json")
                        .POST(HttpRequest.BodyPublishers.ofByteArray(body))
                        .build();
                HttpResponse<String> answer = server.client.send(request, HttpResponse.BodyHandlers.ofString());
                statuses.merge(answer.statusCode(), 1, Integer::sum);
                assertThat(answer.statusCode())
                        .as("%s %s: %s", path, new String(body, StandardCharsets.UTF_8), answer.body())
                        .isLessThan(500);
                if (answer.statusCode() >= 400) {
                    assertThat(TestServer.json(answer).at("/error/message").asString())
                            .isNotBlank();
                }
            }
            assertThat(statuses.get(200)).isGreaterThan(BODIES / 20);
            assertThat(statuses.get(400)).isGreaterThan(BODIES / 20);
            assertThat(server.send("/v1/completions", "{\"prompt\":\"a\",\"max_tokens\":3}")
                            .statusCode())
                    .isEqualTo(200);
            server.awaitIdle();
            assertThat(server.engine.stats().running()).isZero();
            assertThat(server.pool.stats().leased()).isZero();
        }
    }

    @Test
    void hostileShapesAreRefused() throws Exception {
        try (TestServer server = new TestServer(folder)) {
            ByteArrayOutputStream halfSurrogate = new ByteArrayOutputStream();
            halfSurrogate.writeBytes("{\"prompt\":\"\\ud800\"}".getBytes(StandardCharsets.UTF_8));
            List<String> bodies = List.of(
                    "{\"prompt\":" + "[".repeat(5000) + "]".repeat(5000) + "}",
                    "{\"a\":".repeat(2000) + "1" + "}".repeat(2000),
                    "{\"prompt\":\"a\",\"temperature\":1e999}",
                    "{\"prompt\":\"a\",\"max_tokens\":" + "9".repeat(400) + "}",
                    "{\"prompt\":\"a\",\"max_tokens\":1e400}",
                    halfSurrogate.toString(StandardCharsets.UTF_8),
                    "{\"prompt\":\"a\"} {\"prompt\":\"b\"}",
                    "{\"prompt\":[1.5]}",
                    "{\"prompt\":[1,\"a\"]}",
                    "{\"prompt\":[\"a\",[1]],\"n\":40}",
                    "nul",
                    "",
                    "\uFEFF{}");
            for (String body : bodies) {
                HttpResponse<String> answer = server.send("/v1/completions", body);
                assertThat(answer.statusCode())
                        .as("%s: %s", body.substring(0, Math.min(80, body.length())), answer.body())
                        .isEqualTo(400);
                assertThat(TestServer.json(answer).at("/error/message").asString())
                        .isNotBlank();
            }
        }
    }
}
