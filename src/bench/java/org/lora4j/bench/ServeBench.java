package org.lora4j.bench;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Random;
import java.util.concurrent.TimeUnit;
import org.lora4j.model.causal.ServedModels;
import org.lora4j.serve.AdapterUse;
import org.lora4j.serve.Engine;
import org.lora4j.serve.EngineOptions;
import org.lora4j.serve.PoolOptions;
import org.lora4j.serve.PoolStats;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/**
 * Measures serving on the base that comes with the source, each figure against its baseline in the same run. Run by
 * {@code scripts/serve-bench}; prints rows of a Markdown table.
 */
public final class ServeBench {
    private static final JsonMapper JSON = JsonMapper.builder().build();
    private static final int STREAMS = 64;
    private static final int TOKENS = 32;
    private static final int ROUNDS = 5;

    private ServeBench() {}

    public static void main(String[] arguments) throws Exception {
        Path work = Files.createTempDirectory("lora4j-bench");
        try {
            switch (arguments[0]) {
                case "throughput" -> throughput(work, arguments.length > 1 ? arguments[1] : "");
                case "loading" -> loading(work);
                case "zipf" -> zipf(work, Integer.parseInt(arguments[1]));
                case "cold" -> ColdLoad.run(work);
                default -> throw new IllegalArgumentException("unknown: " + arguments[0]);
            }
        } finally {
            delete(work);
        }
    }

    private static void delete(Path work) throws IOException {
        try (var files = Files.walk(work)) {
            for (Path file : files.sorted(java.util.Comparator.reverseOrder()).toList()) {
                Files.delete(file);
            }
        }
    }

    static void row(String name, String value, String target) {
        System.out.println("| " + name + " | " + value + " | " + target + " |");
    }

    private static long[] prompt(Hosted hosted, int i) {
        List<String> words = List.of("river", "bread", "justice", "to run", "red", "mountain", "song", "winter");
        return hosted.tokenizer.encode("Define: " + words.get(i % words.size()) + "\n", true);
    }

    /** Tokens a second of all streams at once. */
    private static double run(Hosted hosted, Engine engine, boolean adapters) throws Exception {
        List<Hosted.Answer> answers = new ArrayList<>();
        long start = System.nanoTime();
        for (int i = 0; i < STREAMS; i++) {
            Hosted.Answer answer = new Hosted.Answer();
            List<AdapterUse> uses = adapters ? List.of(AdapterUse.of("a" + i)) : List.of();
            engine.submit(Hosted.greedy(prompt(hosted, i), uses, TOKENS), answer);
            answers.add(answer);
        }
        for (Hosted.Answer answer : answers) {
            answer.await();
        }
        return STREAMS * TOKENS / ((System.nanoTime() - start) / 1e9);
    }

    private static void throughput(Path work, String python) throws Exception {
        try (Hosted hosted = new Hosted(PoolOptions.of(1L << 30))) {
            for (int i = 0; i < STREAMS; i++) {
                hosted.registry.register("a" + i, Hosted.adapter(work.resolve("a" + i), 8, i, Hosted.ALL));
            }
            List<Double> with = new ArrayList<>();
            List<Double> without = new ArrayList<>();
            EngineOptions options =
                    EngineOptions.of(128).withMaxBatchTokens(1024).withPrefixCache(false);
            try (Engine engine = new Engine(hosted.host, hosted.pool, options)) {
                run(hosted, engine, true);
                run(hosted, engine, false);
                for (int round = 0; round < ROUNDS; round++) {
                    without.add(run(hosted, engine, false));
                    with.add(run(hosted, engine, true));
                }
            }
            double base = Hosted.quantile(without, 0.5);
            double adapted = Hosted.quantile(with, 0.5);
            row(
                    "64 streams, 64 adapters (r=8, all projections) against none",
                    text("%.0f against %.0f tokens/s: %.2fx", adapted, base, adapted / base),
                    ">= 0.85x");
            if (!python.isEmpty()) {
                JsonNode peft = peft(work, hosted, python);
                double theirs = peft.get("tokens_per_second").asDouble();
                row(
                        "the same requests against PEFT " + peft.get("peft").asString() + " (`adapter_names`, torch "
                                + peft.get("torch").asString() + ")",
                        text("%.0f against %.0f tokens/s: %.1fx", adapted, theirs, adapted / theirs),
                        ">= 5x");
            }
        }
    }

    private static JsonNode peft(Path work, Hosted hosted, String python) throws Exception {
        List<Object> requests = new ArrayList<>();
        for (int i = 0; i < STREAMS; i++) {
            requests.add(java.util.Map.of("adapter", "a" + i, "prompt", prompt(hosted, i)));
        }
        Path file = work.resolve("requests.json");
        Files.writeString(file, JSON.writeValueAsString(requests));
        Process process = new ProcessBuilder(
                        python,
                        "src/bench/python/peft_adapter_names.py",
                        ServedModels.DEMO.toString(),
                        work.toString(),
                        file.toString(),
                        String.valueOf(TOKENS))
                .redirectError(ProcessBuilder.Redirect.INHERIT)
                .start();
        String answer = new String(process.getInputStream().readAllBytes(), java.nio.charset.StandardCharsets.UTF_8);
        if (process.waitFor() != 0) {
            throw new IOException("PEFT failed");
        }
        return JSON.readTree(answer.lines().reduce((first, last) -> last).orElseThrow());
    }

    /** Latency of tokens while adapters are loaded and replaced, and while not, in turns of two seconds. */
    private static void loading(Path work) throws Exception {
        int streams = 8;
        int files = 200;
        try (Hosted hosted = new Hosted(PoolOptions.of(16L << 20))) {
            for (int i = 0; i < files; i++) {
                hosted.registry.register("a" + i, Hosted.adapter(work.resolve("a" + i), 16, i, Hosted.ALL));
            }
            List<List<Double>> gaps = List.of(new ArrayList<>(), new ArrayList<>());
            long loadsBefore = 0;
            int turns = 24;
            try (Engine engine = new Engine(hosted.host, hosted.pool, EngineOptions.of(200))) {
                for (int turn = 0; turn < turns + 2; turn++) {
                    int loading = turn % 2;
                    List<Hosted.Answer> answers = new ArrayList<>();
                    for (int i = 0; i < streams; i++) {
                        Hosted.Answer answer = new Hosted.Answer();
                        engine.submit(Hosted.greedy(prompt(hosted, i), List.of(AdapterUse.of("a" + i)), 150), answer);
                        answers.add(answer);
                    }
                    Random random = new Random(turn);
                    while (answers.stream().anyMatch(answer -> answer.done.getCount() > 0)) {
                        if (loading == 1) {
                            hosted.pool.prefetch("a" + (streams + random.nextInt(files - streams)));
                        }
                        TimeUnit.MILLISECONDS.sleep(50);
                    }
                    if (turn < 2) {
                        loadsBefore = hosted.pool.stats().loads();
                        continue;
                    }
                    for (Hosted.Answer answer : answers) {
                        answer.await();
                        // The first tokens belong to the prompts.
                        for (int i = 6; i < answer.times.size(); i++) {
                            gaps.get(loading).add((answer.times.get(i) - answer.times.get(i - 1)) / 1e6);
                        }
                    }
                }
            }
            double quiet = Hosted.quantile(gaps.get(0), 0.99);
            double busy = Hosted.quantile(gaps.get(1), 0.99);
            row(
                    "p99 between tokens of 8 streams while adapters are loaded (20 a second, r=16) against none",
                    text(
                            "%.1f against %.1f ms: %+.0f %% (median %.1f against %.1f; %d loads)",
                            busy,
                            quiet,
                            100 * (busy / quiet - 1),
                            Hosted.quantile(gaps.get(1), 0.5),
                            Hosted.quantile(gaps.get(0), 0.5),
                            hosted.pool.stats().loads() - loadsBefore),
                    "<= +10 %");
        }
    }

    /** Many more adapters than there is room for, asked for by Zipf's law. */
    private static void zipf(Path work, int requests) throws Exception {
        int adapters = 10_000;
        int different = 256;
        List<Path> folders = new ArrayList<>();
        for (int i = 0; i < different; i++) {
            folders.add(Hosted.adapter(work.resolve("w" + i), 2, i, "q_proj", "v_proj"));
        }
        long each;
        try (Hosted probe = new Hosted(PoolOptions.of(1 << 20))) {
            each = probe.host.inspect(folders.get(0));
        }
        try (Hosted hosted = new Hosted(PoolOptions.of(100 * each).withLoaders(2))) {
            for (int i = 0; i < adapters; i++) {
                hosted.registry.register("a" + i, folders.get(i % different));
            }
            double[] sums = new double[adapters];
            double sum = 0;
            for (int i = 0; i < adapters; i++) {
                sum += 1.0 / (i + 1);
                sums[i] = sum;
            }
            Random random = new Random(1);
            List<Long> memory = new ArrayList<>();
            int failed = 0;
            java.util.Set<Integer> used = new java.util.HashSet<>();
            long start = System.nanoTime();
            EngineOptions options = EngineOptions.of(64).withMaxSequences(32).withMaxBatchTokens(256);
            try (Engine engine = new Engine(hosted.host, hosted.pool, options)) {
                java.util.ArrayDeque<Hosted.Answer> open = new java.util.ArrayDeque<>();
                for (int i = 0; i < requests; i++) {
                    int found = java.util.Arrays.binarySearch(sums, random.nextDouble() * sum);
                    int chosen = found < 0 ? -found - 1 : found;
                    used.add(chosen);
                    Hosted.Answer answer = new Hosted.Answer();
                    engine.submit(
                            Hosted.greedy(prompt(hosted, chosen), List.of(AdapterUse.of("a" + chosen)), 4), answer);
                    open.add(answer);
                    while (open.size() >= 64 || (i == requests - 1 && !open.isEmpty())) {
                        Hosted.Answer first = open.remove();
                        first.done.await();
                        failed += first.failure == null ? 0 : 1;
                    }
                    if (i > 0 && i % (requests / 4) == 0) {
                        memory.add(Hosted.resident());
                    }
                }
            }
            memory.add(Hosted.resident());
            double seconds = (System.nanoTime() - start) / 1e9;
            PoolStats stats = hosted.pool.stats();
            row(
                    text("%d registered adapters, room for 100, %d requests by Zipf's law", adapters, requests),
                    text(
                            "%d errors; %d adapters used, %.0f %% hits, %d evictions, %.0f requests/s; resident memory "
                                    + "at each quarter %s MiB; pool never above its %d KiB",
                            failed,
                            used.size(),
                            100.0 * (requests - stats.misses()) / requests,
                            stats.evictions(),
                            requests / seconds,
                            memory.stream()
                                    .map(bytes -> String.valueOf(bytes >> 20))
                                    .toList(),
                            stats.budget() >> 10),
                    "no error, bounded memory");
        }
    }

    static String text(String format, Object... values) {
        return String.format(Locale.ROOT, format, values);
    }
}
