package org.lora4j.serve.http;

import static org.assertj.core.api.Assertions.assertThat;

import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.lora4j.serve.EngineOptions;
import org.lora4j.serve.PoolOptions;
import tools.jackson.databind.JsonNode;

/** What a server refuses, and how it says so. */
class ApiErrorsTest {
    private static final String COMPLETIONS = "/v1/completions";

    @TempDir
    Path folder;

    private TestServer server;

    @AfterEach
    void close() {
        if (server != null) {
            server.close();
        }
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', textBlock = """
            /v1/completions | {"model":"nobody","prompt":"a"} | 404 | model_not_found
            /v1/completions | {"model":"../one","prompt":"a"} | 404 | model_not_found
            /v1/completions | {"model":5,"prompt":"a"} | 400 | model is 5
            /v1/completions | {} | 400 | prompt must be
            /v1/completions | {"prompt":[]} | 400 | prompt must be
            /v1/completions | {"prompt":[1,99999]} | 400 | token 99999
            /v1/completions | {"prompt":[[]]} | 400 | at least one token
            /v1/completions | {"prompt":"a","max_tokens":0} | 400 | max_tokens is 0
            /v1/completions | {"prompt":"a","max_tokens":1000} | 400 | context_length_exceeded
            /v1/completions | {"prompt":"a","temperature":-1} | 400 | temperature is -1
            /v1/completions | {"prompt":"a","temperature":"hot"} | 400 | temperature is hot
            /v1/completions | {"prompt":"a","top_p":0} | 400 | top_p
            /v1/completions | {"prompt":"a","n":65} | 400 | n is 65
            /v1/completions | {"prompt":"a","stop":[""]} | 400 | stop
            /v1/completions | {"prompt":"a","echo":true} | 400 | unsupported_parameter
            /v1/completions | {"prompt":"a","logit_bias":{"5":1}} | 400 | unsupported_parameter
            /v1/completions | {"prompt":"a","presence_penalty":0.5} | 400 | unsupported_parameter
            /v1/completions | {"prompt":"a","adapters":[{"scale":1}]} | 400 | adapters[0].name
            /v1/completions | {"prompt":"a","adapters":[{"name":"none"}]} | 404 | model_not_found
            /v1/completions | {"prompt":"a" | 400 | acceptable JSON
            /v1/completions | [] | 400 | one JSON object
            /v1/completions | {"prompt":"a","prompt":"b"} | 400 | acceptable JSON
            /v1/chat/completions | {"messages":[]} | 400 | messages is empty
            /v1/chat/completions | {"messages":[{"role":"king","content":"a"}]} | 400 | messages[0].role
            /v1/chat/completions | {"messages":[{"role":"user"}]} | 400 | messages[0].content
            /v1/chat/completions | {"messages":[{"role":"user","content":"a"}],"tools":[{}]} | 400 | tools is not supported
            /v1/load_lora_adapter | {"lora_name":"x"} | 400 | lora_path is missing
            /v1/load_lora_adapter | {"lora_name":"x","lora_path":"/etc"} | 404 | adapter_not_found
            /v1/load_lora_adapter | {"lora_name":"x","lora_path":"../../etc"} | 404 | adapter_not_found
            /v1/load_lora_adapter | {"lora_name":"base","lora_path":"one"} | 400 | is the base model
            /v1/unload_lora_adapter | {"lora_name":"x"} | 404 | adapter_not_found
            /v1/unload_lora_adapter | {} | 400 | lora_name is missing
            /v1/nothing | {} | 404 | error
            /v1/models | {} | 405 | error
            """)
    void whatIsWrongIsSaidInOpenAisShape(String path, String body, int status, String words) throws Exception {
        server = new TestServer(folder);
        HttpResponse<String> answer = server.send(path, body);
        assertThat(answer.statusCode()).as(answer.body()).isEqualTo(status);
        JsonNode error = TestServer.json(answer).get("error");
        assertThat(error.get("message").asString()).isNotBlank();
        assertThat(error.get("type").asString()).isNotBlank();
        assertThat(error.has("param")).isTrue();
        assertThat(error.has("code")).isTrue();
        assertThat(answer.body().replace("\\\"", "\"")).contains(words);
    }

    @Test
    void bodiesHaveATypeAndALimit() throws Exception {
        server = new TestServer(
                folder, EngineOptions.of(100), PoolOptions.of(1 << 26), options -> options.withLimits(2048, 4));
        HttpRequest text = HttpRequest.newBuilder(server.uri(COMPLETIONS))
                .header("Content-Type", "text/plain")
                .POST(HttpRequest.BodyPublishers.ofString("{\"prompt\":\"a\"}"))
                .build();
        assertThat(server.client
                        .send(text, HttpResponse.BodyHandlers.ofString())
                        .statusCode())
                .isEqualTo(415);
        String large = "{\"prompt\":\"" + "a".repeat(3000) + "\"}";
        assertThat(server.send(COMPLETIONS, large).statusCode()).isEqualTo(413);
        // Likewise when the size is not told beforehand.
        HttpRequest chunked = HttpRequest.newBuilder(server.uri(COMPLETIONS))
                .header("Content-Type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofInputStream(
                        () -> new java.io.ByteArrayInputStream(large.getBytes(StandardCharsets.UTF_8))))
                .build();
        assertThat(server.client
                        .send(chunked, HttpResponse.BodyHandlers.ofString())
                        .statusCode())
                .isEqualTo(413);
        assertThat(server.post(COMPLETIONS, Map.of("prompt", "a", "n", 5)).statusCode())
                .isEqualTo(400);
    }

    @Test
    void keysAreAskedForWhereModelsAre() throws Exception {
        server = new TestServer(
                folder, EngineOptions.of(100), PoolOptions.of(1 << 26), options -> options.withApiKey("secret"));
        assertThat(server.get("/health").statusCode()).isEqualTo(200);
        assertThat(server.get("/").statusCode()).isEqualTo(200);
        for (String wrong : List.of("", "Bearer ", "Bearer secre", "secret", "Bearer secret2")) {
            HttpRequest.Builder request = server.request(COMPLETIONS, "{\"prompt\":\"a\"}");
            if (!wrong.isEmpty()) {
                request.header("Authorization", wrong);
            }
            HttpResponse<String> answer = server.client.send(request.build(), HttpResponse.BodyHandlers.ofString());
            assertThat(answer.statusCode()).isEqualTo(401);
            assertThat(TestServer.json(answer).at("/error/code").asString()).isEqualTo("invalid_api_key");
        }
        assertThat(server.get("/v1/models").statusCode()).isEqualTo(401);
        HttpRequest right = server.request(COMPLETIONS, "{\"prompt\":\"a\"}")
                .header("Authorization", "Bearer secret")
                .build();
        assertThat(server.client
                        .send(right, HttpResponse.BodyHandlers.ofString())
                        .statusCode())
                .isEqualTo(200);
    }
}
