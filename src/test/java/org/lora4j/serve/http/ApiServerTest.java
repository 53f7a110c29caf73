package org.lora4j.serve.http;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.InputStream;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.stream.IntStream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.lora4j.serve.EngineOptions;
import org.lora4j.serve.PoolOptions;
import tools.jackson.databind.JsonNode;

class ApiServerTest {
    private static final String COMPLETIONS = "/v1/completions";
    private static final String CHAT = "/v1/chat/completions";

    @TempDir
    Path folder;

    private TestServer server;

    private void open() throws Exception {
        server = new TestServer(folder);
    }

    @AfterEach
    void close() {
        if (server != null) {
            server.close();
        }
    }

    private static Map<String, Object> completion(String model, Object... more) {
        Map<String, Object> body = new LinkedHashMap<>();
        body.put("model", model);
        body.put("prompt", "Define: river\n");
        body.put("temperature", 0);
        body.put("max_tokens", 12);
        body.put("ignore_eos", true);
        for (int i = 0; i < more.length; i += 2) {
            body.put((String) more[i], more[i + 1]);
        }
        return body;
    }

    private static Map<String, Object> chat(String model, Object... more) {
        Map<String, Object> body = completion(model, more);
        body.remove("prompt");
        body.putIfAbsent("messages", List.of(Map.of("role", "user", "content", "Define: river")));
        return body;
    }

    private String text(Map<String, Object> body) throws Exception {
        return server.ask(COMPLETIONS, body).at("/choices/0/text").asString();
    }

    /** The parts of a stream; the last is DONE and not among them. */
    private List<JsonNode> stream(String path, Map<String, Object> body) throws Exception {
        HttpResponse<String> answer = server.post(path, body);
        assertThat(answer.headers().firstValue("Content-Type").orElse("")).startsWith("text/event-stream");
        List<JsonNode> parts = new ArrayList<>();
        String[] events = answer.body().split("\n\n");
        assertThat(events[events.length - 1]).isEqualTo("data: [DONE]");
        for (int i = 0; i < events.length - 1; i++) {
            assertThat(events[i]).startsWith("data: ");
            parts.add(TestServer.JSON.readTree(events[i].substring(6)));
        }
        return parts;
    }

    @Test
    void theModelOfARequestIsItsAdapter() throws Exception {
        open();
        JsonNode base = server.ask(COMPLETIONS, completion("base"));
        assertThat(base.get("object").asString()).isEqualTo("text_completion");
        assertThat(base.get("id").asString()).startsWith("cmpl-");
        assertThat(base.at("/choices/0/finish_reason").asString()).isEqualTo("length");
        assertThat(base.at("/usage/completion_tokens").asInt()).isEqualTo(12);
        int prompt = server.tokenizer.encode("Define: river\n", true).length;
        assertThat(base.at("/usage/prompt_tokens").asInt()).isEqualTo(prompt);
        assertThat(base.at("/usage/total_tokens").asInt()).isEqualTo(prompt + 12);
        String baseText = base.at("/choices/0/text").asString();
        assertThat(baseText).isNotEmpty();
        assertThat(List.of(text(completion("one")), text(completion("two")), baseText))
                .doesNotHaveDuplicates();
        // An adapter at no scale is the base, and two at once are neither.
        assertThat(text(completion("base", "adapters", List.of(Map.of("name", "one", "scale", 0)))))
                .isEqualTo(baseText);
        assertThat(text(completion("one", "adapters", List.of(Map.of("name", "two", "scale", 0.5)))))
                .isNotEqualTo(text(completion("one")));
        HttpResponse<String> answer = server.post(COMPLETIONS, completion("one"));
        assertThat(answer.headers().firstValue("X-Adapter")).hasValue("one");
        assertThat(answer.headers().firstValue("X-Adapter-Weights").orElse("")).matches("\\d+-[0-9a-f]{12}");
    }

    @Test
    void aStreamSaysTheSame() throws Exception {
        open();
        for (String model : List.of("base", "one")) {
            String whole = text(completion(model));
            List<JsonNode> parts = stream(
                    COMPLETIONS, completion(model, "stream", true, "stream_options", Map.of("include_usage", true)));
            StringBuilder text = new StringBuilder();
            for (JsonNode part : parts.subList(0, parts.size() - 1)) {
                text.append(part.at("/choices/0/text").asString());
                assertThat(part.get("usage").isNull()).isTrue();
            }
            assertThat(text.toString()).isEqualTo(whole);
            assertThat(parts.size()).isGreaterThan(5);
            JsonNode last = parts.get(parts.size() - 1);
            assertThat(last.get("choices").size()).isZero();
            assertThat(last.at("/usage/completion_tokens").asInt()).isEqualTo(12);
            assertThat(parts.get(parts.size() - 2)
                            .at("/choices/0/finish_reason")
                            .asString())
                    .isEqualTo("length");
        }
    }

    @Test
    void aChatIsItsTextsAsPrompt() throws Exception {
        open();
        String expected = text(completion("two"));
        JsonNode answer = server.ask(CHAT, chat("two"));
        assertThat(answer.get("object").asString()).isEqualTo("chat.completion");
        assertThat(answer.at("/choices/0/message/role").asString()).isEqualTo("assistant");
        assertThat(answer.at("/choices/0/message/content").asString()).isEqualTo(expected);
        Object parts = List.of(Map.of("type", "text", "text", "Define: "), Map.of("type", "text", "text", "river"));
        assertThat(server.ask(CHAT, chat("two", "messages", List.of(Map.of("role", "user", "content", parts))))
                        .at("/choices/0/message/content")
                        .asString())
                .isEqualTo(expected);
        List<JsonNode> stream = stream(CHAT, chat("two", "stream", true));
        assertThat(stream.get(0).at("/choices/0/delta/role").asString()).isEqualTo("assistant");
        StringBuilder text = new StringBuilder();
        stream.forEach(
                part -> text.append(part.at("/choices/0/delta").path("content").asString("")));
        assertThat(text.toString()).isEqualTo(expected);
        // Without a limit the answer may fill the context.
        Map<String, Object> open = chat("two");
        open.remove("max_tokens");
        assertThat(server.ask(CHAT, open).at("/usage/total_tokens").asInt()).isEqualTo(200);
    }

    @Test
    void stopTextsEndAnAnswerAndAreNotInIt() throws Exception {
        open();
        String whole = text(completion("one", "max_tokens", 30));
        // A stop in the middle, beginning within a token and ending in another.
        String stop = whole.substring(whole.length() / 2, whole.length() / 2 + 5);
        String before = whole.substring(0, whole.indexOf(stop));
        for (Object stops : List.of(stop, List.of("never\u0001", stop, whole.substring(whole.length() - 2)))) {
            JsonNode answer =
                    server.ask(COMPLETIONS, completion("one", "max_tokens", 30, "stop", stops, "logprobs", 1));
            assertThat(answer.at("/choices/0/text").asString()).isEqualTo(before);
            assertThat(answer.at("/choices/0/finish_reason").asString()).isEqualTo("stop");
            for (JsonNode offset : answer.at("/choices/0/logprobs/text_offset")) {
                assertThat(offset.asInt()).isLessThan(before.length());
            }
            StringBuilder text = new StringBuilder();
            stream(COMPLETIONS, completion("one", "max_tokens", 30, "stop", stops, "stream", true))
                    .forEach(part -> text.append(part.at("/choices/0/text").asString()));
            assertThat(text.toString()).isEqualTo(before);
        }
        server.awaitIdle();
        assertThat(server.pool.stats().leased()).isZero();
    }

    @Test
    void logProbabilitiesAreThoseOfTheTokens() throws Exception {
        open();
        JsonNode told =
                server.ask(COMPLETIONS, completion("one", "logprobs", 3)).at("/choices/0/logprobs");
        assertThat(told.get("tokens").size()).isEqualTo(12);
        for (int i = 0; i < 12; i++) {
            double logprob = told.at("/token_logprobs/" + i).asDouble();
            assertThat(logprob).isNegative();
            JsonNode top = told.at("/top_logprobs/" + i);
            assertThat(top.size()).isBetween(1, 3);
            // Greedy: the chosen one is the likeliest.
            assertThat(top.propertyStream()
                            .mapToDouble(each -> each.getValue().asDouble())
                            .max())
                    .hasValue(logprob);
        }
        JsonNode chat = server.ask(CHAT, chat("one", "logprobs", true, "top_logprobs", 2))
                .at("/choices/0/logprobs");
        assertThat(chat.get("content").size()).isEqualTo(12);
        for (int i = 0; i < 12; i++) {
            JsonNode token = chat.at("/content/" + i);
            assertThat(token.get("logprob").asDouble())
                    .isEqualTo(told.at("/token_logprobs/" + i).asDouble());
            assertThat(token.get("token").asString())
                    .isEqualTo(told.at("/tokens/" + i).asString());
            assertThat(token.get("top_logprobs").size()).isEqualTo(2);
        }
    }

    @Test
    void seedsRepeatAndChoicesDiffer() throws Exception {
        open();
        Map<String, Object> body = completion("one", "temperature", 1.2, "n", 3, "seed", 7);
        JsonNode first = server.ask(COMPLETIONS, body);
        JsonNode second = server.ask(COMPLETIONS, body);
        List<String> texts = new ArrayList<>();
        for (int i = 0; i < 3; i++) {
            assertThat(first.at("/choices/" + i + "/index").asInt()).isEqualTo(i);
            texts.add(first.at("/choices/" + i + "/text").asString());
            assertThat(second.at("/choices/" + i + "/text").asString()).isEqualTo(texts.get(i));
        }
        assertThat(texts).doesNotHaveDuplicates();
        assertThat(first.at("/usage/completion_tokens").asInt()).isEqualTo(36);
        body.put("seed", 1000);
        assertThat(server.ask(COMPLETIONS, body).at("/choices/0/text").asString())
                .isNotIn(texts);
        // Streams of several choices are told apart by their index.
        body.put("seed", 7);
        body.put("stream", true);
        Map<Integer, String> streamed = new HashMap<>();
        stream(COMPLETIONS, body)
                .forEach(part -> streamed.merge(
                        part.at("/choices/0/index").asInt(),
                        part.at("/choices/0/text").asString(),
                        String::concat));
        assertThat(streamed.values()).containsExactlyElementsOf(texts);
    }

    @Test
    void promptsAreTextsOrTokens() throws Exception {
        open();
        String expected = text(completion("one"));
        long[] ids = server.tokenizer.encode("Define: river\n", true);
        assertThat(text(completion("one", "prompt", ids))).isEqualTo(expected);
        JsonNode several = server.ask(
                COMPLETIONS, completion("one", "prompt", List.of("Psalms 1:1\n", "Define: river\n"), "n", 2));
        assertThat(several.get("choices").size()).isEqualTo(4);
        assertThat(several.at("/choices/2/text").asString()).isEqualTo(expected);
        assertThat(several.at("/choices/0/text").asString()).isNotEqualTo(expected);
    }

    @Test
    void adaptersAreLoadedReplacedAndUnloaded() throws Exception {
        open();
        server.adapter("three", 3, 5);
        Map<String, Object> load = new HashMap<>(Map.of("lora_name", "mine", "lora_path", "one"));
        assertThat(server.post("/v1/load_lora_adapter", load).statusCode()).isEqualTo(200);
        String asOne = text(completion("one"));
        assertThat(text(completion("mine"))).isEqualTo(asOne);
        load.put("lora_path", server.roots.resolve("three").toString());
        HttpResponse<String> again = server.post("/v1/load_lora_adapter", load);
        assertThat(again.statusCode()).isEqualTo(400);
        assertThat(again.body()).contains("load_inplace");
        assertThat(text(completion("mine"))).isEqualTo(asOne);
        load.put("load_inplace", true);
        assertThat(server.post("/v1/load_lora_adapter", load).statusCode()).isEqualTo(200);
        assertThat(text(completion("mine")))
                .isEqualTo(text(completion("three")))
                .isNotEqualTo(asOne);
        // A defective one changes nothing.
        Path broken = Files.createDirectories(server.roots.resolve("broken"));
        Files.copy(server.roots.resolve("one/adapter_config.json"), broken.resolve("adapter_config.json"));
        Files.writeString(broken.resolve("adapter_model.safetensors"), "no tensors here");
        load.put("lora_path", "broken");
        HttpResponse<String> failed = server.post("/v1/load_lora_adapter", load);
        assertThat(failed.statusCode()).as(failed.body()).isEqualTo(400);
        assertThat(failed.body()).contains("adapter_failed");
        assertThat(text(completion("mine"))).isEqualTo(text(completion("three")));
        HttpResponse<String> asked = server.post(COMPLETIONS, completion("broken"));
        assertThat(asked.statusCode()).isEqualTo(400);
        assertThat(asked.body()).contains("adapter_failed");
        JsonNode models = TestServer.json(server.get("/v1/models"));
        assertThat(models.get("data").valueStream().map(each -> each.get("id").asString()))
                .containsExactlyInAnyOrder("base", "mine", "one", "two", "three", "broken");
        assertThat(models.at("/data/1/parent").asString()).isEqualTo("base");
        assertThat(server.get("/v1/models/two").statusCode()).isEqualTo(200);
        assertThat(server.get("/v1/models/nobody").statusCode()).isEqualTo(404);
        assertThat(server.post("/v1/unload_lora_adapter", Map.of("lora_name", "mine"))
                        .statusCode())
                .isEqualTo(200);
        assertThat(server.post(COMPLETIONS, completion("mine")).statusCode()).isEqualTo(404);
        assertThat(server.post("/v1/unload_lora_adapter", Map.of("lora_name", "mine"))
                        .statusCode())
                .isEqualTo(404);
    }

    @Test
    void pathsThroughLinksOutOfTheRootsAreRefused() throws Exception {
        open();
        Path outside = Files.createDirectories(folder.resolve("outside"));
        Files.copy(server.roots.resolve("one/adapter_config.json"), outside.resolve("adapter_config.json"));
        Files.copy(server.roots.resolve("one/adapter_model.safetensors"), outside.resolve("adapter_model.safetensors"));
        Files.createSymbolicLink(server.roots.resolve("link"), outside);
        for (String path : List.of("link", "../outside", outside.toString())) {
            assertThat(server.post("/v1/load_lora_adapter", Map.of("lora_name", "x", "lora_path", path))
                            .statusCode())
                    .as(path)
                    .isEqualTo(404);
        }
        assertThat(server.post(COMPLETIONS, completion("link")).statusCode()).isEqualTo(404);
        assertThat(server.post(COMPLETIONS, completion("../outside")).statusCode())
                .isEqualTo(404);
    }

    @Test
    void metricsCountWhatHappened() throws Exception {
        open();
        server.ask(COMPLETIONS, completion("one"));
        server.ask(COMPLETIONS, completion("one"));
        server.ask(COMPLETIONS, completion("base"));
        HttpResponse<String> answer = server.get("/metrics");
        assertThat(answer.headers().firstValue("Content-Type").orElse("")).startsWith("text/plain");
        assertThat(answer.body())
                .contains(
                        "lora4j_requests_total{adapter=\"one\"} 2.0",
                        "lora4j_requests_total{adapter=\"(base)\"} 1.0",
                        "lora4j_generated_tokens_total{adapter=\"one\"} 24.0",
                        "lora4j_adapter_loads_total{adapter=\"one\"} 1.0",
                        "lora4j_pool_misses_total{adapter=\"one\"} 1.0",
                        "lora4j_pool_hits_total{adapter=\"one\"} 2.0",
                        "lora4j_queue 0.0",
                        "lora4j_adapter_queue{adapter=\"one\"} 0.0",
                        "lora4j_pool_adapters 1.0",
                        "lora4j_adapter_load_seconds_count 1",
                        "lora4j_time_to_first_token_seconds_count 3");
        JsonNode status = TestServer.json(server.get("/v1/status"));
        assertThat(status.at("/engine/generated_tokens").asLong()).isEqualTo(36);
        assertThat(status.at("/adapters/0/name").asString()).isEqualTo("one");
        assertThat(status.at("/adapters/0/state").asString()).isEqualTo("ready");
        assertThat(status.at("/adapters/1/state").asString()).isEqualTo("cold");
        assertThat(status.at("/pool/used").asLong()).isPositive();
    }

    @Test
    void aClientThatGoesAwayFreesItsPlace() throws Exception {
        open();
        Map<String, Object> body = completion("one", "max_tokens", 185, "stream", true);
        for (int i = 0; i < 3; i++) {
            HttpResponse<InputStream> answer = server.client.send(
                    server.request(COMPLETIONS, TestServer.JSON.writeValueAsString(body))
                            .build(),
                    HttpResponse.BodyHandlers.ofInputStream());
            answer.body().read();
            answer.body().close();
        }
        server.awaitIdle();
        assertThat(server.engine.stats().running()).isZero();
        assertThat(server.engine.stats().reservedPages()).isZero();
        assertThat(server.pool.stats().leased()).isZero();
        assertThat(server.engine.stats().generatedTokens()).isLessThanOrEqualTo(3 * 185);
        assertThat(text(completion("one"))).isNotEmpty();
    }

    @Test
    void requestsBeyondTheQueueAreRefusedForNow() throws Exception {
        server = new TestServer(
                folder,
                EngineOptions.of(200).withMaxSequences(1).withMaxWaiting(1),
                PoolOptions.of(1 << 26),
                options -> options);
        String body = TestServer.JSON.writeValueAsString(completion("base", "max_tokens", 180));
        List<CompletableFuture<HttpResponse<String>>> answers = IntStream.range(0, 6)
                .mapToObj(i -> server.client.sendAsync(
                        server.request(COMPLETIONS, body).build(), HttpResponse.BodyHandlers.ofString()))
                .toList();
        List<Integer> statuses = new ArrayList<>();
        for (CompletableFuture<HttpResponse<String>> answer : answers) {
            statuses.add(answer.get().statusCode());
            if (answer.get().statusCode() == 429) {
                assertThat(TestServer.json(answer.get()).at("/error/code").asString())
                        .isEqualTo("too_many_requests");
                assertThat(answer.get().headers().firstValue("Retry-After")).hasValue("1");
            }
        }
        assertThat(statuses).containsOnly(200, 429).contains(200, 429);
    }

    @Test
    void stoppingLetsRequestsFinish() throws Exception {
        open();
        String body = TestServer.JSON.writeValueAsString(completion("one", "max_tokens", 150, "stream", true));
        CompletableFuture<HttpResponse<String>> answer = server.client.sendAsync(
                server.request(COMPLETIONS, body).build(), HttpResponse.BodyHandlers.ofString());
        while (server.engine.stats().running() == 0) {
            TimeUnit.MILLISECONDS.sleep(1);
        }
        CompletableFuture<Void> closed = CompletableFuture.runAsync(server.server::close);
        HttpResponse<String> health;
        do {
            health = server.get("/health");
        } while (health.statusCode() == 200 && !closed.isDone());
        assertThat(health.statusCode()).isEqualTo(503);
        HttpResponse<String> late = server.post(COMPLETIONS, completion("one"));
        assertThat(late.statusCode()).isEqualTo(503);
        assertThat(TestServer.json(late).at("/error/code").asString()).isEqualTo("shutting_down");
        assertThat(answer.get().body()).endsWith("data: [DONE]\n\n").contains("\"finish_reason\":\"length\"");
        closed.get(30, TimeUnit.SECONDS);
    }

    @Test
    void requestsThatAreNotDoneInTimeAreEnded() throws Exception {
        server = new TestServer(
                folder,
                EngineOptions.of(250),
                PoolOptions.of(1 << 26),
                options -> options.withDrainLimit(Duration.ofMillis(1)));
        String body = TestServer.JSON.writeValueAsString(completion("one", "max_tokens", 240, "stream", true, "n", 32));
        CompletableFuture<HttpResponse<String>> answer = server.client.sendAsync(
                server.request(COMPLETIONS, body).build(), HttpResponse.BodyHandlers.ofString());
        while (server.engine.stats().generatedTokens() == 0) {
            TimeUnit.MILLISECONDS.sleep(1);
        }
        server.server.close();
        assertThat(answer.get().body()).contains("shutting_down").endsWith("data: [DONE]\n\n");
    }

    @Test
    void thePageIsWholeAndAsksNobodyElse() throws Exception {
        open();
        HttpResponse<String> page = server.get("/");
        assertThat(page.headers().firstValue("Content-Type").orElse("")).startsWith("text/html");
        assertThat(page.headers().firstValue("Content-Security-Policy").orElse(""))
                .contains("default-src 'none'");
        assertThat(page.body())
                .contains("Try two side by side")
                .doesNotContain("http://")
                .doesNotContain("https://");
    }
}
