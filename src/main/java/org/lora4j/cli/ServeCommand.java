package org.lora4j.cli;

import io.javalin.util.JavalinBindException;
import java.io.IOException;
import java.net.InetAddress;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.CountDownLatch;
import org.jspecify.annotations.Nullable;
import org.lora4j.model.HostModel;
import org.lora4j.model.causal.CausalLM;
import org.lora4j.model.causal.Tokenizer;
import org.lora4j.serve.AdapterPool;
import org.lora4j.serve.AdapterRegistry;
import org.lora4j.serve.AdapterRoots;
import org.lora4j.serve.Engine;
import org.lora4j.serve.EngineOptions;
import org.lora4j.serve.PoolOptions;
import org.lora4j.serve.http.ApiServer;
import org.lora4j.serve.http.ChatFormat;
import org.lora4j.serve.http.ServerOptions;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Spec;

/** A server of one base with any number of adapters. */
@Command(
        name = "serve",
        description = {
            "Serves a base model with any number of adapters over HTTP, as OpenAI's API does.",
            "",
            "The name of an adapter is the model of a request. A folder with an adapter in one of the --adapters folders"
                    + " is found by its name when it is first asked for. A page at / shows what goes on.",
            ""
        },
        mixinStandardHelpOptions = true,
        sortOptions = false)
final class ServeCommand implements Callable<Integer> {
    private static final String KEY_VARIABLE = "LORA4J_API_KEY";

    @Spec
    private CommandSpec spec;

    @Option(
            names = "--model",
            paramLabel = "DIR",
            description = "Checkpoint of the base. Default: the one in the source tree")
    private @Nullable Path model;

    @Option(
            names = "--name",
            paramLabel = "NAME",
            description = "What requests call the base. Default: its folder's name")
    private @Nullable String name;

    @Option(
            names = "--adapters",
            paramLabel = "DIR",
            description = "Folder that holds adapters; may be given several times. Adapters elsewhere are refused")
    private List<Path> roots = List.of();

    @Option(
            names = "--lora",
            paramLabel = "NAME=DIR",
            description = "An adapter to know by a name of its own; may be given several times")
    private Map<String, Path> adapters = new LinkedHashMap<>();

    @Option(
            names = "--host",
            paramLabel = "ADDRESS",
            defaultValue = "127.0.0.1",
            description = "Address to listen at; 0.0.0.0 to be reached from elsewhere. Default: ${DEFAULT-VALUE}")
    private String host = "";

    @Option(
            names = "--port",
            paramLabel = "PORT",
            defaultValue = "8080",
            description = "Port to listen at; 0 for any that is free. Default: ${DEFAULT-VALUE}")
    private int port;

    @Option(
            names = "--api-key",
            paramLabel = "KEY",
            description =
                    "What requests must bring as bearer token. Default: the variable " + KEY_VARIABLE + ", or none")
    private @Nullable String apiKey;

    @Option(
            names = "--pool",
            paramLabel = "SIZE",
            defaultValue = "1g",
            converter = ByteSize.class,
            description = "Memory for adapters in use. Default: ${DEFAULT-VALUE}")
    private long pool;

    @Option(
            names = "--host-cache",
            paramLabel = "SIZE",
            defaultValue = "0",
            converter = ByteSize.class,
            description = "Memory for adapters that made room for others, to load them again faster."
                    + " Default: ${DEFAULT-VALUE}")
    private long hostCache;

    @Option(
            names = "--loaders",
            paramLabel = "N",
            defaultValue = "2",
            description = "Threads that load adapters. Default: ${DEFAULT-VALUE}")
    private int loaders;

    @Option(
            names = "--max-tokens",
            paramLabel = "N",
            description = "Most tokens of a request, prompt and answer. Default: the model's, up to 4096")
    private @Nullable Integer maxTokens;

    @Option(
            names = "--max-running",
            paramLabel = "N",
            defaultValue = "64",
            description = "Requests computed together. Default: ${DEFAULT-VALUE}")
    private int maxRunning;

    @Option(
            names = "--max-waiting",
            paramLabel = "N",
            defaultValue = "1024",
            description = "Requests that may wait; more are refused. Default: ${DEFAULT-VALUE}")
    private int maxWaiting;

    @Option(
            names = "--cache-tokens",
            paramLabel = "N",
            description = "Tokens whose keys and values are kept. Default: enough for all that run, up to 262144")
    private @Nullable Integer cacheTokens;

    @Option(
            names = "--chat-format",
            paramLabel = "FORMAT",
            description =
                    "How messages become a prompt: ${COMPLETION-CANDIDATES}. Default: by the checkpoint's template")
    private @Nullable ChatFormat chatFormat;

    @Option(
            names = "--max-body",
            paramLabel = "SIZE",
            defaultValue = "1m",
            converter = ByteSize.class,
            description = "Largest body of a request. Default: ${DEFAULT-VALUE}")
    private long maxBody;

    @Option(
            names = "--drain",
            paramLabel = "SECONDS",
            defaultValue = "30",
            description = "How long requests may go on after the server is told to stop. Default: ${DEFAULT-VALUE}")
    private int drain;

    /** What stops with the server. */
    private record Running(
            ApiServer server, AdapterPool pool, HostModel<CausalLM> host, CausalLM model, Tokenizer tokenizer)
            implements AutoCloseable {
        @Override
        public void close() {
            server.close();
            pool.close();
            host.close();
            model.close();
            tokenizer.close();
        }
    }

    @Override
    public Integer call() throws IOException, InterruptedException {
        Terminal terminal = new Terminal(spec.commandLine().getOut(), Terminal.attached());
        Running running = start(terminal);
        CountDownLatch stopped = new CountDownLatch(1);
        Thread hook = new Thread(
                () -> {
                    terminal.line("stopping; requests have %d s to finish", drain);
                    running.close();
                    terminal.line("stopped");
                    stopped.countDown();
                },
                "lora4j-stop");
        Runtime.getRuntime().addShutdownHook(hook);
        // Until a signal ends the process.
        stopped.await();
        return 0;
    }

    private Running start(Terminal terminal) throws IOException {
        Path folder = folder(
                "--model",
                model == null
                        ? Path.of(System.getProperty("lora4j.home", ""), "src", "test", "resources", "demo", "base")
                        : model);
        roots.forEach(root -> folder("--adapters", root));
        AdapterRoots known = new AdapterRoots(roots);
        CausalLM base = CausalLM.load(folder);
        Tokenizer tokenizer = Tokenizer.load(folder);
        HostModel<CausalLM> hosted = HostModel.of(base);
        AdapterRegistry registry = new AdapterRegistry(known);
        for (Map.Entry<String, Path> adapter : adapters.entrySet()) {
            registry.register(adapter.getKey(), folder("--lora " + adapter.getKey(), adapter.getValue()));
        }
        AdapterPool memory = new AdapterPool(registry, hosted, new PoolOptions(pool, hostCache, loaders));
        String key = apiKey == null ? System.getenv(KEY_VARIABLE) : apiKey;
        String called = name == null ? String.valueOf(folder.toRealPath().getFileName()) : name;
        ServerOptions options = ServerOptions.of(called, chatFormat == null ? ChatFormat.of(folder) : chatFormat)
                .withAddress(host, port)
                .withApiKey(key == null || key.isBlank() ? null : key)
                .withRoots(roots)
                .withLimits((int) Math.min(maxBody, Integer.MAX_VALUE - 8), 64)
                .withDrainLimit(Duration.ofSeconds(drain));
        Engine engine = new Engine(hosted, memory, limits(base));
        ApiServer server;
        try {
            server = new ApiServer(engine, memory, tokenizer, known, options);
        } catch (JavalinBindException e) {
            engine.close();
            throw new IOException("port " + port + " at " + host + " is taken: choose another with --port", e);
        }
        terminal.line(
                "lora4j serves \"%s\" at http://%s:%d, with up to %d tokens a request",
                called,
                host.contains(":") ? "[" + host + "]" : host,
                server.port(),
                engine.options().maxTokens());
        terminal.line(
                "adapters: %d by name, %d in folders",
                adapters.size(), known.names().size());
        if (options.apiKey() == null && !InetAddress.getByName(host).isLoopbackAddress()) {
            terminal.line("warning: others can reach this server and it asks for no key: set --api-key or put a proxy"
                    + " before it");
        }
        return new Running(server, memory, hosted, base, tokenizer);
    }

    private EngineOptions limits(CausalLM base) {
        int tokens = maxTokens == null ? Math.min(4096, base.config().maxPositions()) : maxTokens;
        if (tokens > base.config().maxPositions()) {
            throw new ParameterException(
                    spec.commandLine(),
                    "--max-tokens is " + tokens + ", but the model has "
                            + base.config().maxPositions() + " positions");
        }
        EngineOptions options = EngineOptions.of(tokens);
        long cached =
                cacheTokens == null ? Math.max(tokens, Math.min(262_144L, (long) maxRunning * tokens)) : cacheTokens;
        int page = options.pageTokens();
        return options.withMaxBatchTokens(Math.max(options.maxBatchTokens(), maxRunning))
                .withMaxSequences(maxRunning)
                .withPages((int) ((cached + page - 1) / page), page)
                .withMaxWaiting(maxWaiting);
    }

    private Path folder(String option, Path path) {
        if (!Files.isDirectory(path)) {
            throw new ParameterException(
                    spec.commandLine(), option + ": " + path + " is no folder; name one that holds the files");
        }
        return path;
    }
}
