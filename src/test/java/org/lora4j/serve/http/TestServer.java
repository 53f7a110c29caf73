package org.lora4j.serve.http;

import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.function.UnaryOperator;
import org.lora4j.model.HostModel;
import org.lora4j.model.causal.CausalLM;
import org.lora4j.model.causal.ServedModels;
import org.lora4j.model.causal.Tokenizer;
import org.lora4j.serve.AdapterPool;
import org.lora4j.serve.AdapterRegistry;
import org.lora4j.serve.AdapterRoots;
import org.lora4j.serve.Engine;
import org.lora4j.serve.EngineOptions;
import org.lora4j.serve.PoolOptions;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/** The demo's base behind a server at a free port, with adapters in a folder, that answer differently. */
final class TestServer implements AutoCloseable {
    static final JsonMapper JSON = JsonMapper.builder().build();
    static final String BASE = "base";

    final Path roots;
    final AdapterPool pool;
    final Engine engine;
    final ApiServer server;
    final Tokenizer tokenizer;
    private final CausalLM model;
    private final HostModel<CausalLM> host;
    final HttpClient client = HttpClient.newHttpClient();

    TestServer(Path folder) throws IOException {
        this(folder, EngineOptions.of(200), PoolOptions.of(64L << 20), options -> options);
    }

    TestServer(Path folder, EngineOptions engineOptions, PoolOptions poolOptions, UnaryOperator<ServerOptions> change)
            throws IOException {
        roots = Files.createDirectories(folder.resolve("adapters"));
        adapter("one", 1, 3);
        adapter("two", 2, 4);
        model = CausalLM.load(ServedModels.DEMO);
        tokenizer = Tokenizer.load(ServedModels.DEMO);
        host = HostModel.of(model);
        AdapterRoots known = new AdapterRoots(List.of(roots));
        pool = new AdapterPool(new AdapterRegistry(known), host, poolOptions);
        engine = new Engine(host, pool, engineOptions);
        ServerOptions options = ServerOptions.of(BASE, ChatFormat.PLAIN)
                .withAddress("127.0.0.1", 0)
                .withRoots(List.of(roots));
        server = new ApiServer(engine, pool, tokenizer, known, change.apply(options));
    }

    /** Writes an adapter into the folder the server may read. */
    Path adapter(String name, long seed, int rank) throws IOException {
        return ServedModels.adapter(
                roots.resolve(name), ServedModels.DEMO, rank, 2 * rank + 1, seed, 0.2, "q_proj", "v_proj", "down_proj");
    }

    /** Waits until no request runs: what a stop string or a closed connection ended leaves at the engine's next step. */
    void awaitIdle() throws InterruptedException {
        for (int i = 0; i < 500 && engine.stats().running() > 0; i++) {
            TimeUnit.MILLISECONDS.sleep(20);
        }
    }

    URI uri(String path) {
        return URI.create("http://127.0.0.1:" + server.port() + path);
    }

    HttpResponse<String> get(String path) throws Exception {
        return client.send(HttpRequest.newBuilder(uri(path)).build(), HttpResponse.BodyHandlers.ofString());
    }

    HttpRequest.Builder request(String path, String body) {
        return HttpRequest.newBuilder(uri(path))
                .timeout(Duration.ofSeconds(60))
                .header("Content-Type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofString(body));
    }

    HttpResponse<String> send(String path, String body) throws Exception {
        return client.send(request(path, body).build(), HttpResponse.BodyHandlers.ofString());
    }

    HttpResponse<String> post(String path, Map<String, ?> body) throws Exception {
        return send(path, JSON.writeValueAsString(body));
    }

    /** The answer to a request that must succeed. */
    JsonNode ask(String path, Map<String, ?> body) throws Exception {
        HttpResponse<String> answer = post(path, body);
        if (answer.statusCode() != 200) {
            throw new AssertionError(answer.statusCode() + " " + answer.body());
        }
        return JSON.readTree(answer.body());
    }

    static JsonNode json(HttpResponse<String> answer) {
        return JSON.readTree(answer.body());
    }

    @Override
    public void close() {
        server.close();
        pool.close();
        host.close();
        model.close();
        tokenizer.close();
    }
}
