package org.lora4j.serve.http;

import io.micrometer.core.instrument.Counter;
import io.micrometer.core.instrument.FunctionCounter;
import io.micrometer.core.instrument.Gauge;
import io.micrometer.core.instrument.Timer;
import io.micrometer.prometheusmetrics.PrometheusConfig;
import io.micrometer.prometheusmetrics.PrometheusMeterRegistry;
import java.time.Duration;
import java.util.HashSet;
import java.util.Set;
import java.util.concurrent.TimeUnit;
import java.util.function.ToDoubleFunction;
import org.lora4j.serve.AdapterEntry;
import org.lora4j.serve.AdapterPool;
import org.lora4j.serve.Engine;
import org.lora4j.serve.EngineStats;
import org.lora4j.serve.PoolListener;
import org.lora4j.serve.PoolStats;

/**
 * What Prometheus reads. Each series about adapters has one line for each of a bounded number of names and one for all
 * others, so that thousands of adapters do not make thousands of lines.
 */
final class Metrics implements PoolListener, AutoCloseable {
    private static final int MOST_ADAPTERS = 256;

    private final PrometheusMeterRegistry registry = new PrometheusMeterRegistry(PrometheusConfig.DEFAULT);
    private final Engine engine;
    private final AdapterPool pool;
    private final Set<String> inEngine = new HashSet<>();
    private final Set<String> inPool = new HashSet<>();
    private final Timer firstToken;
    private final Timer nextToken;
    private final Timer loads;
    private final Counter disconnects;

    Metrics(Engine engine, AdapterPool pool) {
        this.engine = engine;
        this.pool = pool;
        firstToken = timer("lora4j.time.to.first.token", "From a request to its first token");
        nextToken = timer("lora4j.time.between.tokens", "Between two tokens of a request");
        loads = timer("lora4j.adapter.load", "From the miss of an adapter until it is in the pool");
        disconnects = Counter.builder("lora4j.client.disconnects")
                .description("Streams whose client went away")
                .register(registry);
        gauge("lora4j.queue", "Requests that wait", EngineStats::waiting);
        gauge("lora4j.running", "Requests being computed", EngineStats::running);
        gauge("lora4j.cache.pages", "Pages of the cache of keys and values", EngineStats::pages);
        gauge("lora4j.cache.pages.reserved", "Pages promised to running requests", EngineStats::reservedPages);
        gauge("lora4j.cache.pages.idle", "Pages kept for prompts that begin alike", EngineStats::idlePages);
        count("lora4j.requests.failed", "Requests that failed", EngineStats::failed);
        count("lora4j.requests.cancelled", "Requests that were cancelled", EngineStats::cancelled);
        count("lora4j.prompt.tokens", "Tokens of prompts computed", EngineStats::promptTokens);
        count("lora4j.prompt.tokens.cached", "Tokens of prompts found in the cache", EngineStats::cachedTokens);
        count("lora4j.steps", "Steps computed", EngineStats::steps);
        poolGauge("lora4j.pool.bytes", "Bytes the pool may use", PoolStats::budget);
        poolGauge("lora4j.pool.bytes.used", "Bytes the pool uses", PoolStats::used);
        poolGauge("lora4j.pool.adapters", "Adapters in memory", PoolStats::resident);
        poolGauge("lora4j.pool.adapters.leased", "Adapters in use", PoolStats::leased);
        poolGauge("lora4j.pool.adapters.loading", "Adapters being loaded", PoolStats::loading);
        poolGauge("lora4j.pool.host.bytes.used", "Bytes of adapters kept in host memory", PoolStats::hostUsed);
        poolCount("lora4j.pool.host.hits", "Loads answered from host memory", PoolStats::hostHits);
        poolCount("lora4j.pool.loaded.bytes", "Bytes of adapters loaded", PoolStats::loadedBytes);
        Gauge.builder("lora4j.adapters.registered", pool.registry(), known -> known.size())
                .description("Adapters known by name")
                .register(registry);
        pool.listener(this);
    }

    private Timer timer(String name, String description) {
        return Timer.builder(name)
                .description(description)
                .serviceLevelObjectives(
                        Duration.ofMillis(1),
                        Duration.ofMillis(5),
                        Duration.ofMillis(10),
                        Duration.ofMillis(25),
                        Duration.ofMillis(50),
                        Duration.ofMillis(100),
                        Duration.ofMillis(250),
                        Duration.ofMillis(500),
                        Duration.ofSeconds(1),
                        Duration.ofMillis(2500),
                        Duration.ofSeconds(5),
                        Duration.ofSeconds(10))
                .register(registry);
    }

    private void gauge(String name, String description, ToDoubleFunction<EngineStats> value) {
        Gauge.builder(name, engine, each -> value.applyAsDouble(each.stats()))
                .description(description)
                .register(registry);
    }

    private void count(String name, String description, ToDoubleFunction<EngineStats> value) {
        FunctionCounter.builder(name, engine, each -> value.applyAsDouble(each.stats()))
                .description(description)
                .register(registry);
    }

    private void poolGauge(String name, String description, ToDoubleFunction<PoolStats> value) {
        Gauge.builder(name, pool, each -> value.applyAsDouble(each.stats()))
                .description(description)
                .register(registry);
    }

    private void poolCount(String name, String description, ToDoubleFunction<PoolStats> value) {
        FunctionCounter.builder(name, pool, each -> value.applyAsDouble(each.stats()))
                .description(description)
                .register(registry);
    }

    void firstToken(long nanos) {
        firstToken.record(nanos, TimeUnit.NANOSECONDS);
    }

    void nextToken(long nanos) {
        nextToken.record(nanos, TimeUnit.NANOSECONDS);
    }

    void disconnected() {
        disconnects.increment();
    }

    @Override
    public void asked(AdapterEntry entry, boolean inMemory) {
        of(inMemory ? "lora4j.pool.hits" : "lora4j.pool.misses", entry).increment();
    }

    @Override
    public void loaded(AdapterEntry entry, long bytes, long nanos) {
        loads.record(nanos, TimeUnit.NANOSECONDS);
        of("lora4j.adapter.loads", entry).increment();
    }

    @Override
    public void evicted(AdapterEntry entry) {
        of("lora4j.pool.evictions", entry).increment();
    }

    @Override
    public void failed(AdapterEntry entry) {
        of("lora4j.adapter.load.failures", entry).increment();
    }

    /** Called under the pool's lock. */
    private Counter of(String name, AdapterEntry entry) {
        boolean named = inPool.contains(entry.name());
        if (!named && inPool.size() < MOST_ADAPTERS) {
            named = inPool.add(entry.name());
        }
        return registry.counter(name, "adapter", named ? entry.name() : EngineStats.OTHER);
    }

    /** Prometheus' text. */
    synchronized String text() {
        for (String adapter : engine.stats().adapters().keySet()) {
            if (inEngine.add(adapter)) {
                use("lora4j.requests", "Requests begun", adapter, EngineStats.Use::requests);
                use("lora4j.generated.tokens", "Tokens added", adapter, EngineStats.Use::generatedTokens);
                Gauge.builder(
                                "lora4j.adapter.queue",
                                engine,
                                each -> use(each, adapter).waiting())
                        .description("Requests of an adapter that wait")
                        .tag("adapter", adapter)
                        .register(registry);
            }
        }
        return registry.scrape();
    }

    private void use(String name, String description, String adapter, ToDoubleFunction<EngineStats.Use> value) {
        FunctionCounter.builder(name, engine, each -> value.applyAsDouble(use(each, adapter)))
                .description(description)
                .tag("adapter", adapter)
                .register(registry);
    }

    private static EngineStats.Use use(Engine engine, String adapter) {
        return engine.stats().adapters().getOrDefault(adapter, new EngineStats.Use(0, 0, 0, 0));
    }

    @Override
    public void close() {
        pool.listener(PoolListener.NONE);
        registry.close();
    }
}
