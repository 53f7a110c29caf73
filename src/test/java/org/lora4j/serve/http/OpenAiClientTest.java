package org.lora4j.serve.http;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import com.openai.client.OpenAIClient;
import com.openai.client.okhttp.OpenAIOkHttpClient;
import com.openai.core.RequestOptions;
import com.openai.core.http.StreamResponse;
import com.openai.errors.NotFoundException;
import com.openai.errors.UnauthorizedException;
import com.openai.models.chat.completions.ChatCompletion;
import com.openai.models.chat.completions.ChatCompletionChunk;
import com.openai.models.chat.completions.ChatCompletionCreateParams;
import com.openai.models.chat.completions.ChatCompletionStreamOptions;
import com.openai.models.completions.Completion;
import com.openai.models.completions.CompletionCreateParams;
import com.openai.models.models.Model;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.lora4j.serve.EngineOptions;
import org.lora4j.serve.PoolOptions;

/** OpenAI's own Java client against the server, with everything it checks. */
class OpenAiClientTest {
    private static final String KEY = "a-key";

    @TempDir
    Path folder;

    private TestServer server;
    private OpenAIClient client;

    @BeforeEach
    void open() throws Exception {
        server = new TestServer(
                folder, EngineOptions.of(200), PoolOptions.of(64L << 20), options -> options.withApiKey(KEY));
        client = client(KEY);
    }

    private OpenAIClient client(String key) {
        return OpenAIOkHttpClient.builder()
                .baseUrl("http://127.0.0.1:" + server.server.port() + "/v1")
                .apiKey(key)
                .maxRetries(0)
                .responseValidation(true)
                .build();
    }

    @AfterEach
    void close() {
        client.close();
        server.close();
    }

    private static ChatCompletionCreateParams.Builder chat(String model) {
        return ChatCompletionCreateParams.builder()
                .model(model)
                .addUserMessage("Define: river")
                .temperature(0)
                .maxCompletionTokens(12);
    }

    @Test
    void listsModels() {
        List<String> ids = client.models().list().data().stream().map(Model::id).toList();
        assertThat(ids).containsExactly("base", "one", "two");
        assertThat(client.models().retrieve("one").ownedBy()).isEqualTo("lora4j");
    }

    @Test
    void chatsWithEachAdapter() {
        ChatCompletion base =
                client.chat().completions().create(chat("base").seed(3).build());
        ChatCompletion one = client.chat()
                .completions()
                .create(chat("one").logprobs(true).topLogprobs(2).n(2).build());
        base.validate();
        one.validate();
        assertThat(one.model()).isEqualTo("one");
        assertThat(one.choices()).hasSize(2);
        String text = one.choices().get(0).message().content().orElseThrow();
        assertThat(text).isNotEqualTo(base.choices().get(0).message().content().orElseThrow());
        assertThat(one.choices().get(1).message().content()).hasValue(text);
        var tokens = one.choices().get(0).logprobs().orElseThrow().content().orElseThrow();
        assertThat(tokens.get(0).topLogprobs()).hasSize(2);
        assertThat(tokens.get(0).topLogprobs().get(0).logprob())
                .isEqualTo(tokens.get(0).logprob());
        assertThat(one.usage().orElseThrow().completionTokens()).isPositive();
        assertThat(one.usage().orElseThrow().totalTokens())
                .isEqualTo(one.usage().orElseThrow().promptTokens()
                        + one.usage().orElseThrow().completionTokens());
    }

    @Test
    void streamsChats() {
        String whole = client.chat()
                .completions()
                .create(chat("two").build())
                .choices()
                .get(0)
                .message()
                .content()
                .orElseThrow();
        StringBuilder text = new StringBuilder();
        ChatCompletionCreateParams params = chat("two")
                .streamOptions(
                        ChatCompletionStreamOptions.builder().includeUsage(true).build())
                .build();
        try (StreamResponse<ChatCompletionChunk> stream =
                client.chat().completions().createStreaming(params)) {
            List<ChatCompletionChunk> chunks =
                    stream.stream().map(ChatCompletionChunk::validate).toList();
            chunks.forEach(chunk ->
                    chunk.choices().forEach(choice -> choice.delta().content().ifPresent(text::append)));
            assertThat(chunks.get(chunks.size() - 1).usage().orElseThrow().completionTokens())
                    .isPositive();
        }
        assertThat(text.toString()).isEqualTo(whole);
    }

    @Test
    void completesPrompts() {
        CompletionCreateParams params = CompletionCreateParams.builder()
                .model("one")
                .promptOfArrayOfStrings(List.of("Define: river\n", "Psalms 1:1\n"))
                .temperature(0)
                .maxTokens(8)
                .logprobs(2)
                .stop("zzz")
                .build();
        Completion completion = client.completions().create(params);
        completion.validate();
        assertThat(completion.choices()).hasSize(2);
        assertThat(completion.choices().get(1).logprobs().orElseThrow().tokens().orElseThrow())
                .isNotEmpty();
        StringBuilder text = new StringBuilder();
        CompletionCreateParams streamed =
                params.toBuilder().prompt("Define: river\n").build();
        // The parts before the last have no finish_reason, as OpenAI's own; the client's validation does not allow for
        // it.
        RequestOptions lenient =
                RequestOptions.builder().responseValidation(false).build();
        try (StreamResponse<Completion> stream = client.completions().createStreaming(streamed, lenient)) {
            stream.stream().forEach(part -> part.choices().forEach(choice -> text.append(choice.text())));
        }
        assertThat(text.toString()).isEqualTo(completion.choices().get(0).text());
    }

    @Test
    void errorsAreItsOwnExceptions() {
        assertThatThrownBy(
                        () -> client.chat().completions().create(chat("nobody").build()))
                .isInstanceOf(NotFoundException.class)
                .hasMessageContaining("there is no model or adapter");
        OpenAIClient stranger = client("another");
        assertThatThrownBy(() -> stranger.models().list()).isInstanceOf(UnauthorizedException.class);
        stranger.close();
    }
}
