package org.lora4j.bench;

import java.io.InputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import org.lora4j.model.causal.ServedModels;
import org.lora4j.serve.AdapterRegistry;
import org.lora4j.serve.AdapterRoots;
import org.lora4j.serve.Engine;
import org.lora4j.serve.EngineOptions;
import org.lora4j.serve.PoolOptions;
import org.lora4j.serve.http.ApiServer;
import org.lora4j.serve.http.ChatFormat;
import org.lora4j.serve.http.ServerOptions;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/**
 * Keeps a server busy over HTTP while adapters are loaded, replaced, unloaded, evicted and found broken or cut short as on a
 * full disk, and while clients go away. Greedy answers are the same in any batch, so each is compared with what the weights
 * it names answered before; an answer of other weights is seen at once. Run by {@code scripts/serve-bench soak SECONDS}.
 */
public final class ServeSoak {
    private static final JsonMapper JSON = JsonMapper.builder().build();
    private static final int WEIGHTS = 24;
    private static final int NAMES = 12;
    private static final int CLIENTS = 6;
    private static final List<String> PROMPTS = List.of("Define: river\n", "Psalms 1:1\n", "Define: to run\n");
    private static final int TOKENS = 12;

    private final Path roots;
    private final HttpClient client = HttpClient.newHttpClient();
    private final Map<String, AtomicLong> counts = new ConcurrentHashMap<>();
    private final List<String> wrong = java.util.Collections.synchronizedList(new ArrayList<>());
    /** What each weights answer to each prompt, by the first characters of their hash. */
    private final Map<String, List<String>> expected = new ConcurrentHashMap<>();
    /** The hashes a name may have: those it has had and that which it is getting. */
    private final Map<String, Set<String>> allowed = new ConcurrentHashMap<>();

    private final List<String> hashes = new ArrayList<>();
    private int port;
    private volatile boolean running = true;
    private final long pauseMillis;

    private ServeSoak(Path roots, long pauseMillis) {
        this.roots = roots;
        this.pauseMillis = pauseMillis;
    }

    public static void main(String[] arguments) throws Exception {
        long seconds = Long.parseLong(arguments[0]);
        long pause = arguments.length > 1 ? Long.parseLong(arguments[1]) : 20;
        Path work = Files.createTempDirectory("lora4j-soak");
        try {
            new ServeSoak(work, pause).run(seconds);
        } finally {
            try (var files = Files.walk(work)) {
                for (Path file :
                        files.sorted(java.util.Comparator.reverseOrder()).toList()) {
                    Files.deleteIfExists(file);
                }
            }
        }
    }

    private void run(long seconds) throws Exception {
        for (int i = 0; i < WEIGHTS; i++) {
            ServedModels.adapter(
                    roots.resolve("w" + i), ServedModels.DEMO, 1 + i % 9, 3 + i, i, 0.3, "q_proj", "v_proj");
        }
        AdapterRoots known = new AdapterRoots(List.of(roots));
        try (Hosted hosted = new Hosted(PoolOptions.of(400_000), new AdapterRegistry(known))) {
            EngineOptions limits = EngineOptions.of(96).withMaxSequences(8).withWaitLimit(Duration.ofMinutes(2));
            Engine engine = new Engine(hosted.host, hosted.pool, limits);
            ServerOptions options = ServerOptions.of("base", ChatFormat.PLAIN)
                    .withAddress("127.0.0.1", 0)
                    .withRoots(List.of(roots));
            try (ApiServer server = new ApiServer(engine, hosted.pool, hosted.tokenizer, known, options)) {
                port = server.port();
                learn();
                List<Thread> threads = new ArrayList<>();
                for (int i = 0; i < CLIENTS; i++) {
                    Random random = new Random(i);
                    threads.add(start("client-" + i, () -> client(random)));
                }
                Random ofLeaver = new Random(100);
                threads.add(start("leaver", () -> leaver(ofLeaver)));
                Random ofAdmin = new Random(200);
                threads.add(start("admin", () -> admin(ofAdmin)));
                Random ofVandal = new Random(300);
                threads.add(start("vandal", () -> vandal(ofVandal)));
                List<Long> memory = new ArrayList<>();
                long quarter = seconds * 1000 / 8;
                for (int i = 0; i < 8; i++) {
                    TimeUnit.MILLISECONDS.sleep(quarter);
                    System.gc();
                    memory.add(Hosted.resident() >> 20);
                    System.err.println("after " + (i + 1) * quarter / 1000 + " s: " + new TreeMap<>(counts)
                            + ", resident " + memory.get(i) + " MiB, wrong " + wrong.size());
                }
                running = false;
                for (Thread thread : threads) {
                    thread.join();
                }
                report(seconds, hosted, engine, memory);
            }
        }
        if (!wrong.isEmpty()) {
            throw new IllegalStateException("wrong answers: " + wrong.subList(0, Math.min(5, wrong.size())));
        }
    }

    private void report(long seconds, Hosted hosted, Engine engine, List<Long> memory) {
        System.out.println("| Soak | " + seconds + " s |");
        System.out.println("| --- | --- |");
        new TreeMap<>(counts).forEach((name, count) -> System.out.println("| " + name + " | " + count + " |"));
        var pool = hosted.pool.stats();
        System.out.println("| loads, evictions, failed loads in the pool | " + pool.loads() + ", " + pool.evictions()
                + ", " + pool.failures() + " |");
        System.out.println("| requests cancelled because the client went away | "
                + engine.stats().cancelled() + " |");
        System.out.println("| leases and pages held at the end | " + pool.leased() + ", "
                + engine.stats().reservedPages() + " |");
        System.out.println("| resident memory at each eighth, MiB | " + memory + " |");
        System.out.println("| lost requests, answers of wrong weights or wrong statuses | " + wrong.size() + " |");
    }

    private interface Work {
        void run() throws Exception;
    }

    private Thread start(String name, Work work) {
        Thread thread = new Thread(
                () -> {
                    while (running) {
                        try {
                            work.run();
                        } catch (Exception e) {
                            wrong.add(name + ": " + e);
                        }
                    }
                },
                name);
        thread.start();
        return thread;
    }

    private void count(String what) {
        counts.computeIfAbsent(what, absent -> new AtomicLong()).incrementAndGet();
    }

    private HttpRequest.Builder request(String path, Map<String, ?> body) {
        return HttpRequest.newBuilder(URI.create("http://127.0.0.1:" + port + path))
                .timeout(Duration.ofSeconds(120))
                .header("Content-Type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofString(JSON.writeValueAsString(body)));
    }

    private HttpResponse<String> post(String path, Map<String, ?> body) throws Exception {
        return client.send(request(path, body).build(), HttpResponse.BodyHandlers.ofString());
    }

    private static Map<String, Object> completion(String model, int prompt, boolean stream) {
        Map<String, Object> body = new LinkedHashMap<>();
        body.put("model", model);
        body.put("prompt", PROMPTS.get(prompt));
        body.put("max_tokens", TOKENS);
        body.put("temperature", 0);
        body.put("ignore_eos", true);
        body.put("stream", stream);
        return body;
    }

    private static String hash(HttpResponse<?> answer) {
        return answer.headers().firstValue("X-Adapter-Weights").orElse("-").replaceAll(".*-", "");
    }

    /** Asks each weights alone, under the name of their folder. */
    private void learn() throws Exception {
        Set<String> different = new java.util.HashSet<>();
        for (int i = 0; i < WEIGHTS; i++) {
            List<String> texts = new ArrayList<>();
            String hash = "";
            for (int prompt = 0; prompt < PROMPTS.size(); prompt++) {
                HttpResponse<String> answer = post("/v1/completions", completion("w" + i, prompt, false));
                if (answer.statusCode() != 200) {
                    throw new IllegalStateException("w" + i + ": " + answer.statusCode() + " " + answer.body());
                }
                texts.add(JSON.readTree(answer.body()).at("/choices/0/text").asString());
                hash = hash(answer);
            }
            hashes.add(hash);
            expected.put(hash, texts);
            different.add(String.join("|", texts));
            post("/v1/unload_lora_adapter", Map.of("lora_name", "w" + i));
        }
        if (different.size() != WEIGHTS || expected.size() != WEIGHTS) {
            throw new IllegalStateException(
                    "only " + different.size() + " of " + WEIGHTS + " adapters are recognisable");
        }
        for (int i = 0; i < NAMES; i++) {
            load("n" + i, i, false);
        }
    }

    private void load(String name, int weights, boolean inPlace) throws Exception {
        allowed.computeIfAbsent(name, absent -> ConcurrentHashMap.newKeySet()).add(hashes.get(weights));
        HttpResponse<String> answer;
        do {
            answer = post(
                    "/v1/load_lora_adapter",
                    Map.of("lora_name", name, "lora_path", "w" + weights, "load_inplace", inPlace));
        } while (answer.statusCode() == 409);
        if (answer.statusCode() != 200) {
            wrong.add("load of " + name + ": " + answer.statusCode() + " " + answer.body());
        }
        count(inPlace ? "replaced in place" : "loaded");
    }

    private void client(Random random) throws Exception {
        String name = "n" + random.nextInt(NAMES);
        int prompt = random.nextInt(PROMPTS.size());
        boolean stream = random.nextBoolean();
        HttpResponse<String> answer = post("/v1/completions", completion(name, prompt, stream));
        if (answer.statusCode() == 404 && name.equals("n0")) {
            // The one name that comes and goes.
            count("answered 404 while unloaded");
        } else if (answer.statusCode() == 400
                && name.equals("n0")
                && answer.body().contains("unloaded meanwhile")) {
            count("answered 400, unloaded while waiting");
        } else if (answer.statusCode() != 200) {
            wrong.add(name + ": " + answer.statusCode() + " " + answer.body());
        } else {
            String hash = hash(answer);
            String text = stream
                    ? text(answer.body())
                    : JSON.readTree(answer.body()).at("/choices/0/text").asString();
            List<String> texts = expected.get(hash);
            if (texts == null
                    || !allowed.get(name).contains(hash)
                    || !texts.get(prompt).equals(text)) {
                wrong.add(name + " by " + hash + ": " + text);
            }
            count("answers checked");
        }
        TimeUnit.MILLISECONDS.sleep(random.nextLong(2 * pauseMillis + 1));
    }

    private static String text(String events) {
        StringBuilder text = new StringBuilder();
        for (String event : events.split("\n\n")) {
            if (event.startsWith("data: {")) {
                JsonNode part = JSON.readTree(event.substring(6));
                if (part.has("error")) {
                    return event;
                }
                part.get("choices")
                        .forEach(choice -> text.append(choice.get("text").asString()));
            }
        }
        return events.endsWith("data: [DONE]\n\n") ? text.toString() : "unfinished: " + text;
    }

    private void leaver(Random random) throws Exception {
        Map<String, Object> body = completion("n" + (1 + random.nextInt(NAMES - 1)), 0, true);
        body.put("max_tokens", 80);
        HttpResponse<InputStream> answer =
                client.send(request("/v1/completions", body).build(), HttpResponse.BodyHandlers.ofInputStream());
        if (answer.statusCode() == 200) {
            answer.body().readNBytes(random.nextInt(600));
            count("clients gone in the middle");
        } else {
            wrong.add("leaver: " + answer.statusCode());
        }
        answer.body().close();
        TimeUnit.MILLISECONDS.sleep(10 * pauseMillis);
    }

    private void admin(Random random) throws Exception {
        if (random.nextInt(3) == 0) {
            if (post("/v1/unload_lora_adapter", Map.of("lora_name", "n0")).statusCode() != 200) {
                wrong.add("n0 could not be unloaded");
            }
            count("unloaded");
            TimeUnit.MILLISECONDS.sleep(pauseMillis);
            load("n0", random.nextInt(WEIGHTS), false);
        } else {
            load("n" + random.nextInt(NAMES), random.nextInt(WEIGHTS), true);
        }
        TimeUnit.MILLISECONDS.sleep(5 * pauseMillis);
    }

    /** Tries to load what is broken, as a copy that was cut short by a full disk or damaged on the way. */
    private void vandal(Random random) throws Exception {
        Path good = roots.resolve("w" + random.nextInt(WEIGHTS));
        Path broken = Files.createDirectories(roots.resolve("broken"));
        Files.copy(
                good.resolve("adapter_config.json"),
                broken.resolve("adapter_config.json"),
                java.nio.file.StandardCopyOption.REPLACE_EXISTING);
        byte[] tensors = Files.readAllBytes(good.resolve("adapter_model.safetensors"));
        Path file = roots.resolve("broken.part");
        boolean cut = random.nextBoolean();
        if (cut) {
            Files.write(file, java.util.Arrays.copyOf(tensors, random.nextInt(tensors.length)));
        } else {
            // The header: damaged data would be other weights, which nobody can tell.
            tensors[random.nextInt(9)] ^= (byte) (1 << random.nextInt(7));
            Files.write(file, tensors);
        }
        Files.move(
                file,
                broken.resolve("adapter_model.safetensors"),
                java.nio.file.StandardCopyOption.REPLACE_EXISTING,
                java.nio.file.StandardCopyOption.ATOMIC_MOVE);
        String name = "n" + random.nextInt(NAMES);
        HttpResponse<String> answer =
                post("/v1/load_lora_adapter", Map.of("lora_name", name, "lora_path", "broken", "load_inplace", true));
        if (answer.statusCode() == 400) {
            count(cut ? "cut short adapters refused" : "damaged adapters refused");
        } else if (answer.statusCode() == 409) {
            count("loads refused because another was going on");
        } else {
            wrong.add("a broken adapter: " + answer.statusCode() + " " + answer.body());
        }
        HttpResponse<String> asked = post("/v1/completions", completion("broken", 0, false));
        if (asked.statusCode() == 400) {
            count("requests for a broken adapter refused");
        } else {
            wrong.add("a request for a broken adapter: " + asked.statusCode() + " " + asked.body());
        }
        TimeUnit.MILLISECONDS.sleep(20 * pauseMillis);
    }
}
