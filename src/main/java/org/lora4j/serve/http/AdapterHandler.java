package org.lora4j.serve.http;

import static org.lora4j.serve.http.Replies.object;

import io.javalin.http.Context;
import java.io.IOException;
import java.nio.file.Path;
import java.time.Instant;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import org.jspecify.annotations.Nullable;
import org.lora4j.serve.AdapterEntry;
import org.lora4j.serve.AdapterPool;
import org.lora4j.serve.AdapterRegistry;
import org.lora4j.serve.AdapterRoots;
import org.lora4j.serve.Engine;
import org.lora4j.serve.EngineStats;
import org.lora4j.serve.PoolStats;

/** Lists, loads and unloads adapters, and tells how the server stands. */
final class AdapterHandler {
    private static final long LOAD_SECONDS = 120;
    private static final int MOST_LISTED = 500;

    private final ServerOptions options;
    private final Engine engine;
    private final AdapterPool pool;
    private final AdapterRoots roots;
    private final Json json;
    private final Set<String> inWork = ConcurrentHashMap.newKeySet();
    private final long started = Instant.now().getEpochSecond();

    AdapterHandler(ServerOptions options, Engine engine, AdapterPool pool, AdapterRoots roots, Json json) {
        this.options = options;
        this.engine = engine;
        this.pool = pool;
        this.roots = roots;
        this.json = json;
    }

    void models(Context context) {
        List<Map<String, @Nullable Object>> models = new ArrayList<>();
        models.add(model(options.modelName(), null));
        AdapterRegistry registry = pool.registry();
        Set<String> named = new HashSet<>();
        for (AdapterEntry entry : registry.entries()) {
            models.add(model(entry.name(), entry.path()));
            named.add(entry.name());
        }
        for (String name : roots.names()) {
            Path path = named.contains(name) ? null : roots.find(name);
            if (path != null) {
                models.add(model(name, path));
            }
        }
        json.reply(context, 200, object("object", "list", "data", models));
    }

    void model(Context context) {
        String name = context.pathParam("name");
        if (name.equals(options.modelName())) {
            json.reply(context, 200, model(name, null));
            return;
        }
        AdapterEntry entry = pool.registry().find(name);
        if (entry == null) {
            throw ApiException.noModel(name);
        }
        json.reply(context, 200, model(name, entry.path()));
    }

    private Map<String, @Nullable Object> model(String name, @Nullable Path path) {
        return object(
                "id",
                name,
                "object",
                "model",
                "created",
                started,
                "owned_by",
                "lora4j",
                "root",
                path == null ? name : path.toString(),
                "parent",
                path == null ? null : options.modelName(),
                "max_model_len",
                engine.options().maxTokens());
    }

    void load(Context context) throws IOException, InterruptedException {
        Fields fields = json.body(context);
        String name = fields.requiredText("lora_name");
        String given = fields.requiredText("lora_path");
        boolean replace = fields.flag("load_inplace");
        boolean pin = fields.flag("pinned");
        if (roots.isEmpty()) {
            throw ApiException.invalid(
                    "lora_path", "the server was started without adapter roots: start it with --adapters FOLDER");
        }
        if (name.equals(options.modelName())) {
            throw ApiException.invalid("lora_name", "\"" + name + "\" is the base model: use another name");
        }
        Path path;
        try {
            path = roots.check(given);
        } catch (IllegalArgumentException e) {
            throw new ApiException(
                    404, "NotFoundError", "lora_path", "adapter_not_found", String.valueOf(e.getMessage()));
        }
        if (!inWork.add(name)) {
            throw new ApiException(
                    409, "conflict", "lora_name", null, "\"" + name + "\" is being loaded by another request: wait");
        }
        try {
            if (!replace && pool.registry().registered(name) != null) {
                throw new ApiException(
                        400,
                        "InvalidUserInput",
                        "lora_name",
                        "adapter_exists",
                        "the adapter \"" + name + "\" is loaded already: set load_inplace to replace it");
            }
            long version = wait(name, path);
            if (pin) {
                pool.pin(name);
            } else {
                pool.unpin(name);
            }
            context.status(200)
                    .contentType("text/plain; charset=utf-8")
                    .result("Success: adapter \"" + name + "\" is loaded as version " + version + ".");
        } finally {
            inWork.remove(name);
        }
    }

    private long wait(String name, Path path) throws InterruptedException {
        try {
            return pool.replace(name, path).get(LOAD_SECONDS, TimeUnit.SECONDS).version();
        } catch (TimeoutException e) {
            throw new ApiException(
                    503,
                    "server_error",
                    null,
                    "load_timeout",
                    "\"" + name + "\" is still being read after " + LOAD_SECONDS + " s: see whether its disk is slow");
        } catch (ExecutionException e) {
            Throwable cause = e.getCause() == null ? e : e.getCause();
            if (cause instanceof IOException || cause instanceof IllegalArgumentException) {
                throw new ApiException(
                        400,
                        "BadRequestError",
                        "lora_path",
                        "adapter_failed",
                        "\"" + name + "\" cannot be loaded: " + cause.getMessage());
            }
            throw new IllegalStateException("loading \"" + name + "\" failed", cause);
        }
    }

    void unload(Context context) throws IOException {
        String name = json.body(context).requiredText("lora_name");
        if (pool.registry().registered(name) == null) {
            throw new ApiException(
                    404,
                    "NotFoundError",
                    "lora_name",
                    "adapter_not_found",
                    "there is no adapter \"" + name + "\" loaded");
        }
        pool.remove(name);
        context.status(200)
                .contentType("text/plain; charset=utf-8")
                .result("Success: adapter \"" + name + "\" is unloaded.");
    }

    /** What the page shows. */
    void status(Context context) {
        EngineStats engineStats = engine.stats();
        PoolStats poolStats = pool.stats();
        List<Map<String, @Nullable Object>> adapters = new ArrayList<>();
        List<AdapterEntry> entries = pool.registry().entries();
        Set<String> named = new HashSet<>();
        for (AdapterEntry entry : entries.subList(0, Math.min(entries.size(), MOST_LISTED))) {
            named.add(entry.name());
            adapters.add(adapter(entry.name(), entry.version(), pool.state(entry), engineStats));
        }
        List<String> known = roots.names().stream()
                .filter(name -> !named.contains(name))
                .limit(MOST_LISTED - adapters.size())
                .toList();
        known.forEach(name -> adapters.add(adapter(name, 0, "cold", engineStats)));
        json.reply(
                context,
                200,
                object(
                        "model",
                        options.modelName(),
                        "adapters",
                        adapters,
                        "registered",
                        entries.size(),
                        "base",
                        adapter(options.modelName(), 0, "ready", engineStats),
                        "pool",
                        poolStats,
                        "engine",
                        object(
                                "running", engineStats.running(),
                                "waiting", engineStats.waiting(),
                                "pages", engineStats.pages(),
                                "reserved_pages", engineStats.reservedPages(),
                                "idle_pages", engineStats.idlePages(),
                                "requests", engineStats.requests(),
                                "prompt_tokens", engineStats.promptTokens(),
                                "cached_tokens", engineStats.cachedTokens(),
                                "generated_tokens", engineStats.generatedTokens())));
    }

    private Map<String, @Nullable Object> adapter(String name, long version, String state, EngineStats stats) {
        String counted = name.equals(options.modelName()) ? EngineStats.BASE : name;
        EngineStats.Use use = stats.adapters().getOrDefault(counted, new EngineStats.Use(0, 0, 0, 0));
        return object(
                "name", name,
                "version", version,
                "state", state,
                "requests", use.requests(),
                "running", use.running(),
                "waiting", use.waiting(),
                "tokens", use.generatedTokens());
    }
}
