package org.lora4j.serve.http;

import static org.lora4j.serve.http.Replies.object;

import io.javalin.Javalin;
import io.javalin.compression.CompressionStrategy;
import io.javalin.config.JavalinConfig;
import io.javalin.http.Context;
import io.javalin.http.Handler;
import io.javalin.http.HttpResponseException;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.Objects;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicInteger;
import org.eclipse.jetty.util.thread.QueuedThreadPool;
import org.lora4j.model.causal.Tokenizer;
import org.lora4j.serve.AdapterFailedException;
import org.lora4j.serve.AdapterPool;
import org.lora4j.serve.AdapterRoots;
import org.lora4j.serve.Engine;
import org.lora4j.serve.EngineBusyException;
import org.lora4j.serve.UnknownAdapterException;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Serves an engine over HTTP. Starts when made; {@link #close} lets the requests it has finish first.
 *
 * <p>OpenAI's {@code /v1/models}, {@code /v1/completions} and {@code /v1/chat/completions}, with the name of an adapter as
 * model; vLLM's {@code /v1/load_lora_adapter} and {@code /v1/unload_lora_adapter}; {@code /v1/status}, {@code /health},
 * {@code /metrics} and a page at {@code /}.
 */
public final class ApiServer implements AutoCloseable {
    /** Names the adapter of an answer; a proxy may send requests with the same value to the same replica. */
    static final String ADAPTER_HEADER = "X-Adapter";

    /** Version and hash of the weights that answer. */
    static final String WEIGHTS_HEADER = "X-Adapter-Weights";

    private static final Logger LOG = LoggerFactory.getLogger(ApiServer.class);
    private static final String PAGE = "page.html";

    private final ServerOptions options;
    private final Engine engine;
    private final Json json;
    private final Metrics metrics;
    private final Javalin http;
    private final byte[] page;
    private final AtomicBoolean closing = new AtomicBoolean();
    private final AtomicInteger open = new AtomicInteger();

    /**
     * Starts a server.
     *
     * @param engine what computes; the server closes it
     * @param pool the pool of the engine; the caller closes it after the server
     * @param roots folders adapters may come from
     * @throws IOException if the page cannot be read
     * @throws io.javalin.util.JavalinBindException if the port is taken
     */
    public ApiServer(Engine engine, AdapterPool pool, Tokenizer tokenizer, AdapterRoots roots, ServerOptions options)
            throws IOException {
        this.options = options;
        this.engine = engine;
        this.json = new Json(options.maxBodyBytes());
        this.metrics = new Metrics(engine, pool);
        try (InputStream in = Objects.requireNonNull(ApiServer.class.getResourceAsStream(PAGE), PAGE)) {
            page = in.readAllBytes();
        }
        RequestParser parser = new RequestParser(options, tokenizer);
        AdapterHandler adapters = new AdapterHandler(options, engine, pool, roots, json);
        this.http = Javalin.create(config -> {
            listen(config);
            config.routes.before(this::admit);
            config.routes.after(context -> context.header("X-Content-Type-Options", "nosniff"));
            config.routes.get("/", this::page);
            config.routes.get("/health", this::health);
            config.routes.get(
                    "/metrics",
                    context -> context.contentType("text/plain; version=0.0.4; charset=utf-8")
                            .result(metrics.text()));
            config.routes.get("/v1/models", adapters::models);
            config.routes.get("/v1/models/<name>", adapters::model);
            config.routes.get("/v1/status", adapters::status);
            config.routes.post("/v1/load_lora_adapter", adapters::load);
            config.routes.post("/v1/unload_lora_adapter", adapters::unload);
            config.routes.post(
                    "/v1/completions",
                    counted(new CompletionHandler(engine, tokenizer, json, metrics, parser::completion)));
            config.routes.post(
                    "/v1/chat/completions",
                    counted(new CompletionHandler(engine, tokenizer, json, metrics, parser::chat)));
            config.routes.exception(Exception.class, this::fail);
            config.routes.error(404, context -> unmatched(context, "there is nothing at " + context.path()));
            config.routes.error(405, context -> unmatched(context, context.path() + " takes no " + context.method()));
        });
        http.start();
    }

    private Handler counted(Handler handler) {
        return context -> {
            open.incrementAndGet();
            try {
                handler.handle(context);
            } finally {
                open.decrementAndGet();
            }
        };
    }

    private void listen(JavalinConfig config) {
        config.jetty.host = options.host();
        config.jetty.port = options.port();
        config.startup.showJavalinBanner = false;
        config.startup.showOldJavalinVersionWarning = false;
        config.startup.startupWatcherEnabled = false;
        config.http.prefer405over404 = true;
        config.http.compressionStrategy = CompressionStrategy.NONE;
        // A request keeps its thread; those beyond what the engine takes are only there to be refused.
        int requests = engine.options().maxSequences() + engine.options().maxWaiting();
        config.jetty.threadPool = new QueuedThreadPool(requests + 64, 8, 60_000);
        config.jetty.modifyHttpConfiguration(jetty -> {
            jetty.setSendServerVersion(false);
            jetty.setSendDateHeader(true);
        });
        // The order of closing is this class's.
        config.jetty.modifyServer(server -> server.setStopTimeout(0));
    }

    /** The port it listens at. */
    public int port() {
        return http.port();
    }

    private void admit(Context context) {
        String key = options.apiKey();
        if (key == null || !context.path().startsWith("/v1/")) {
            return;
        }
        String given = context.header("Authorization");
        byte[] expected = ("Bearer " + key).getBytes(StandardCharsets.UTF_8);
        if (given == null || !MessageDigest.isEqual(expected, given.getBytes(StandardCharsets.UTF_8))) {
            throw new ApiException(
                    401,
                    "invalid_request_error",
                    null,
                    "invalid_api_key",
                    "the request has no valid API key: send the server's as \"Authorization: Bearer KEY\"");
        }
    }

    private void page(Context context) {
        context.contentType("text/html; charset=utf-8")
                .header("Cache-Control", "no-cache")
                .header(
                        "Content-Security-Policy",
                        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
                                + "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
                .result(page);
    }

    private void health(Context context) {
        boolean well = !closing.get() && engine.isRunning();
        json.reply(context, well ? 200 : 503, object("status", well ? "ok" : closing.get() ? "stopping" : "failed"));
    }

    /** What a client is told of a failure. */
    static ApiException explain(Exception e) {
        if (e instanceof ApiException api) {
            return api;
        }
        if (e instanceof UnknownAdapterException unknown) {
            return ApiException.noModel(unknown.name());
        }
        if (e instanceof AdapterFailedException) {
            return new ApiException(
                    400, "invalid_request_error", "model", "adapter_failed", String.valueOf(e.getMessage()));
        }
        if (e instanceof EngineBusyException busy) {
            return busy.isStopping()
                    ? new ApiException(503, "server_error", null, "shutting_down", String.valueOf(e.getMessage()))
                    : new ApiException(
                            429, "rate_limit_error", null, "too_many_requests", String.valueOf(e.getMessage()));
        }
        if (e instanceof HttpResponseException http) {
            int status = http.getStatus();
            return new ApiException(
                    status,
                    status < 500 ? "invalid_request_error" : "server_error",
                    null,
                    null,
                    String.valueOf(e.getMessage()));
        }
        if (e instanceof IllegalArgumentException) {
            return ApiException.invalid(null, String.valueOf(e.getMessage()));
        }
        LOG.error("a request failed", e);
        return new ApiException(500, "server_error", null, null, "the server failed: its log says why");
    }

    /** Javalin's own words for paths and methods it does not know, in OpenAI's shape. */
    private void unmatched(Context context, String message) {
        if (!String.valueOf(context.res().getContentType()).startsWith("application/json")) {
            int status = context.statusCode();
            json.reply(
                    context,
                    status,
                    new ApiException(status, "invalid_request_error", null, null, message + ": see docs/serving.md")
                            .body());
        }
    }

    private void fail(Exception e, Context context) {
        if (context.res().isCommitted()) {
            LOG.debug("a stream broke off", e);
            return;
        }
        if (e instanceof org.eclipse.jetty.io.EofException) {
            metrics.disconnected();
            return;
        }
        ApiException told = explain(e);
        if (told.status() == 429 || told.status() == 503) {
            context.header("Retry-After", "1");
        }
        if (told.status() == 401) {
            context.header("WWW-Authenticate", "Bearer");
        }
        json.reply(context, told.status(), told.body());
    }

    /** Takes no more requests, lets those it has finish within the limit, then stops. */
    @Override
    public void close() {
        if (!closing.compareAndSet(false, true)) {
            return;
        }
        try {
            engine.drain(options.drainLimit());
            // The last tokens are computed: let their threads send them.
            for (int i = 0; i < 200 && open.get() > 0; i++) {
                TimeUnit.MILLISECONDS.sleep(10);
            }
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            engine.close();
        }
        http.stop();
        metrics.close();
    }
}
