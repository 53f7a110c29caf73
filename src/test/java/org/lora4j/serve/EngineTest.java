package org.lora4j.serve;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import org.bytedeco.pytorch.global.torch;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.model.HostModel;
import org.lora4j.model.Lora;
import org.lora4j.model.LoraModel;
import org.lora4j.model.causal.CausalLM;
import org.lora4j.model.causal.GenerationOptions;
import org.lora4j.model.causal.ServedModels;

class EngineTest {
    private static final List<List<AdapterUse>> KINDS = List.of(
            List.of(),
            List.of(AdapterUse.of("one")),
            List.of(AdapterUse.of("odd")),
            List.of(AdapterUse.of("attention")),
            List.of(new AdapterUse("one", 0.5), new AdapterUse("odd", -1)));

    @TempDir
    Path folder;

    private Path checkpoint;
    private CausalLM model;
    private HostModel<CausalLM> host;
    private final AdapterRegistry registry = new AdapterRegistry();
    private AdapterPool pool;
    private int vocab;

    private void open(Path path, boolean strong) throws Exception {
        checkpoint = path;
        model = CausalLM.load(path);
        vocab = model.config().vocabSize();
        host = HostModel.of(model);
        double strength = strong ? 0.6 : 0.3;
        registry.register(
                "one",
                ServedModels.adapter(folder.resolve("one"), path, 1, 2, 1, strength, "q_proj", "v_proj", "down_proj"));
        registry.register(
                "odd",
                ServedModels.adapter(
                        folder.resolve("odd"),
                        path,
                        5,
                        4,
                        2,
                        strength,
                        "q_proj",
                        "k_proj",
                        "v_proj",
                        "o_proj",
                        "gate_proj",
                        "up_proj",
                        "down_proj"));
        registry.register(
                "attention",
                ServedModels.adapter(folder.resolve("attention"), path, 8, 16, 3, strength, "q_proj", "v_proj"));
        pool = new AdapterPool(registry, host, PoolOptions.of(64L << 20));
    }

    @AfterEach
    void close() {
        if (pool != null) {
            pool.close();
            host.close();
            model.close();
        }
    }

    private Path modelPath(String kind) throws Exception {
        return switch (kind) {
            case "tiny" -> ServedModels.tiny(folder.resolve("model"));
            case "sliding" -> ServedModels.sliding(folder.resolve("model"));
            default -> ServedModels.DEMO;
        };
    }

    private EngineOptions options() {
        return EngineOptions.of(60);
    }

    private long[] prompt(Random random, int length) {
        return random.longs(length, 3, vocab).toArray();
    }

    private static GenerationRequest request(long[] prompt, List<AdapterUse> adapters, int tokens, int logprobs) {
        return new GenerationRequest(prompt, adapters, new Sampling(tokens, 0, 1, 0, 0, logprobs), true);
    }

    private static Answer run(Engine engine, GenerationRequest request) throws Exception {
        Answer answer = new Answer();
        engine.submit(request, answer);
        answer.await();
        return answer;
    }

    @ParameterizedTest
    @ValueSource(strings = {"tiny", "sliding"})
    void saysWhatTheModelSaysWithItsAdapterActive(String kind) throws Exception {
        open(modelPath(kind), true);
        Random random = new Random(9);
        Map<String, long[]> prompts = new LinkedHashMap<>();
        List<Answer> answers = new ArrayList<>();
        try (Engine engine = new Engine(host, pool, options())) {
            for (String name : List.of(LoraModel.BASE, "one", "odd", "attention")) {
                prompts.put(name, prompt(random, 3 + prompts.size() * 5));
                Answer answer = new Answer();
                List<AdapterUse> uses = name.equals(LoraModel.BASE) ? List.of() : List.of(AdapterUse.of(name));
                engine.submit(request(prompts.get(name), uses, 12, -1), answer);
                answers.add(answer);
            }
            for (Answer answer : answers) {
                assertThat(answer.await()).isEqualTo(FinishReason.LENGTH);
            }
        }
        try (CausalLM other = CausalLM.load(checkpoint)) {
            LoraModel<CausalLM> lora = Lora.load(other, folder.resolve("one"), "one");
            lora.loadAdapter(folder.resolve("odd"), "odd");
            lora.loadAdapter(folder.resolve("attention"), "attention");
            int i = 0;
            for (Map.Entry<String, long[]> entry : prompts.entrySet()) {
                lora.setActive(entry.getKey().equals(LoraModel.BASE) ? new String[0] : new String[] {entry.getKey()});
                long[][] expected = other.generate(
                        new long[][] {entry.getValue()},
                        GenerationOptions.greedy(12).withEosTokenIds());
                assertThat(answers.get(i++).ids()).as(entry.getKey()).isEqualTo(expected[0]);
            }
        }
        assertThat(answers.stream()
                        .map(Answer::ids)
                        .map(java.util.Arrays::toString)
                        .distinct())
                .hasSize(4);
    }

    /** Log probabilities are compared as doubles, bit for bit. */
    @ParameterizedTest
    @ValueSource(strings = {"tiny", "sliding", "demo"})
    void anAnswerHasTheSameBitsAloneAndInAnyBatch(String kind) throws Exception {
        open(modelPath(kind), false);
        Random random = new Random(17);
        List<GenerationRequest> requests = new ArrayList<>();
        long[] common = prompt(random, 21);
        for (int i = 0; i < 24; i++) {
            long[] own = prompt(random, 1 + random.nextInt(30));
            if (i % 3 == 0) {
                // A beginning others have too, for the prefix cache.
                System.arraycopy(common, 0, own = java.util.Arrays.copyOf(own, Math.max(own.length, 24)), 0, 21);
                own[21] = 5 + i;
                own[22] = 4;
                own[23] = 6;
            }
            requests.add(request(own, KINDS.get(i % KINDS.size()), 4 + random.nextInt(12), 2));
        }
        List<List<GeneratedToken>> alone = new ArrayList<>();
        try (Engine engine = new Engine(host, pool, options().withPrefixCache(false))) {
            for (GenerationRequest request : requests) {
                alone.add(run(engine, request).tokens);
            }
        }
        List<EngineOptions> ways = List.of(
                options(),
                options().withPages(40, 7).withMaxSequences(5).withMaxBatchTokens(9),
                options().withMaxSequences(24).withMaxBatchTokens(300));
        for (EngineOptions way : ways) {
            try (Engine engine = new Engine(host, pool, way)) {
                List<Answer> answers = new ArrayList<>();
                for (GenerationRequest request : requests) {
                    Answer answer = new Answer();
                    engine.submit(request, answer);
                    answers.add(answer);
                }
                for (int i = 0; i < requests.size(); i++) {
                    answers.get(i).await();
                    assertThat(answers.get(i).tokens)
                            .as("%s, request %d", way, i)
                            .isEqualTo(alone.get(i));
                }
                // Again, with prefixes that are known by now.
                Answer again = run(engine, requests.get(0));
                assertThat(again.cached).isPositive();
                assertThat(again.tokens).isEqualTo(alone.get(0));
                assertThat(engine.stats().reservedPages()).isZero();
                assertThat(pool.stats().leased()).isZero();
            }
        }
    }

    @Test
    void prefixesAreSharedOnlyBetweenTheSameWeights() throws Exception {
        open(modelPath("tiny"), true);
        long[] prompt = prompt(new Random(1), 40);
        try (Engine engine = new Engine(host, pool, options())) {
            long[] base = run(engine, request(prompt, List.of(), 6, -1)).ids();
            Answer first = run(engine, request(prompt, List.of(AdapterUse.of("odd")), 6, -1));
            assertThat(first.cached).isZero();
            assertThat(first.ids()).isNotEqualTo(base);
            // The same weights under another name.
            registry.register("same", folder.resolve("odd"));
            Answer same = run(engine, request(prompt, List.of(AdapterUse.of("same")), 6, -1));
            assertThat(same.cached).isEqualTo(32);
            assertThat(same.ids()).isEqualTo(first.ids());
            // Other weights under the same name.
            pool.replace("odd", folder.resolve("one")).get(20, TimeUnit.SECONDS);
            Answer replaced = run(engine, request(prompt, List.of(AdapterUse.of("odd")), 6, -1));
            assertThat(replaced.cached).isZero();
            assertThat(replaced.ids()).isNotEqualTo(first.ids());
            assertThat(run(engine, request(prompt, List.of(AdapterUse.of("one")), 6, -1))
                            .ids())
                    .isEqualTo(replaced.ids());
            // Another factor is another computation.
            assertThat(run(engine, request(prompt, List.of(new AdapterUse("one", 0.5)), 6, -1)).cached)
                    .isZero();
        }
    }

    @Test
    void aRunningRequestKeepsItsWeightsWhenTheNameGetsOthers() throws Exception {
        open(modelPath("tiny"), true);
        long[] prompt = prompt(new Random(2), 4);
        GenerationRequest request = request(prompt, List.of(AdapterUse.of("odd")), 50, -1);
        try (Engine engine = new Engine(host, pool, options())) {
            long[] expected = run(engine, request).ids();
            Answer running = new Answer();
            CountDownLatch begun = new CountDownLatch(3);
            CountDownLatch go = new CountDownLatch(1);
            running.onToken = () -> {
                begun.countDown();
                if (begun.getCount() == 0) {
                    awaitQuietly(go);
                }
            };
            engine.submit(request, running);
            begun.await();
            pool.replace("odd", folder.resolve("one")).get(20, TimeUnit.SECONDS);
            pool.remove("attention");
            go.countDown();
            running.await();
            assertThat(running.ids()).isEqualTo(expected);
            assertThat(run(engine, request).ids()).isNotEqualTo(expected);
        }
    }

    private static void awaitQuietly(CountDownLatch latch) {
        try {
            latch.await();
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
    }

    @Test
    void aNoisyAdapterDoesNotStarveAnother() throws Exception {
        open(modelPath("tiny"), false);
        try (Engine engine =
                new Engine(host, pool, options().withMaxSequences(4).withMaxBatchTokens(16))) {
            AtomicInteger finished = new AtomicInteger();
            List<Answer> noisy = new ArrayList<>();
            Random random = new Random(3);
            for (int i = 0; i < 40; i++) {
                Answer answer = new Answer();
                answer.end.thenRun(finished::incrementAndGet);
                engine.submit(request(prompt(random, 8), List.of(AdapterUse.of("one")), 20, -1), answer);
                noisy.add(answer);
            }
            Answer quiet = new Answer();
            engine.submit(request(prompt(random, 8), List.of(AdapterUse.of("odd")), 20, -1), quiet);
            quiet.await();
            assertThat(finished.get()).isLessThan(12);
            for (Answer answer : noisy) {
                answer.await();
            }
        }
    }

    @Test
    void cancellingFreesWhatARequestHolds() throws Exception {
        open(modelPath("tiny"), false);
        try (Engine engine =
                new Engine(host, pool, options().withMaxSequences(1).withPages(8, 16))) {
            Answer first = new Answer();
            CountDownLatch begun = new CountDownLatch(1);
            first.onToken = begun::countDown;
            Generation running = engine.submit(request(new long[] {4}, List.of(AdapterUse.of("one")), 59, -1), first);
            Answer second = new Answer();
            Generation waits = engine.submit(request(new long[] {5}, List.of(), 3, -1), second);
            begun.await();
            waits.cancel();
            running.cancel();
            assertThat(second.await()).isIn(FinishReason.CANCELLED, FinishReason.LENGTH);
            assertThat(first.await()).isIn(FinishReason.CANCELLED, FinishReason.LENGTH);
            assertThat(run(engine, request(new long[] {6}, List.of(), 3, -1)).ids())
                    .hasSize(3);
            assertThat(engine.stats().reservedPages()).isZero();
            assertThat(pool.stats().leased()).isZero();
        }
    }

    @Test
    void whatCannotBeServedIsRefusedWithItsReason() throws Exception {
        open(modelPath("tiny"), false);
        Path broken = Files.createDirectories(folder.resolve("broken"));
        Files.copy(folder.resolve("one/adapter_config.json"), broken.resolve("adapter_config.json"));
        registry.register("broken", broken);
        EngineOptions few = options().withMaxSequences(1).withMaxWaiting(2).withWaitLimit(Duration.ofSeconds(30));
        try (Engine engine = new Engine(host, pool, few)) {
            Answer answer = new Answer();
            assertThatThrownBy(() -> engine.submit(request(new long[59], List.of(), 5, -1), answer))
                    .hasMessageContaining("59 tokens and max_tokens is 5");
            assertThatThrownBy(() -> engine.submit(request(new long[] {vocab}, List.of(), 5, -1), answer))
                    .hasMessageContaining("the prompt has token " + vocab);
            assertThatThrownBy(() ->
                            engine.submit(request(new long[] {1}, List.of(AdapterUse.of("nobody")), 5, -1), answer))
                    .isInstanceOf(UnknownAdapterException.class);
            engine.submit(request(new long[] {1}, List.of(AdapterUse.of("broken")), 5, -1), answer);
            assertThatThrownBy(answer::await)
                    .isInstanceOf(ExecutionException.class)
                    .hasCauseInstanceOf(AdapterFailedException.class)
                    .hasMessageContaining("holds neither adapter_model.safetensors");

            CountDownLatch hold = new CountDownLatch(1);
            Answer slow = new Answer();
            slow.onToken = () -> awaitQuietly(hold);
            List<Answer> waiting = new ArrayList<>();
            engine.submit(request(new long[] {1}, List.of(), 5, -1), slow);
            for (int i = 0; i < 2; i++) {
                waiting.add(new Answer());
                engine.submit(request(new long[] {1}, List.of(), 5, -1), waiting.get(i));
            }
            assertThatThrownBy(() -> engine.submit(request(new long[] {1}, List.of(), 5, -1), new Answer()))
                    .isInstanceOf(EngineBusyException.class)
                    .hasMessageContaining("2 wait already");
            hold.countDown();
            for (Answer each : waiting) {
                each.await();
            }
        }
    }

    @Test
    void aReceiverThatThrowsHarmsNobodyElse() throws Exception {
        open(modelPath("tiny"), false);
        try (Engine engine = new Engine(host, pool, options())) {
            Answer bad = new Answer();
            bad.onToken = () -> {
                throw new IllegalStateException("gone");
            };
            engine.submit(request(new long[] {3}, List.of(), 30, -1), bad);
            assertThat(run(engine, request(new long[] {3}, List.of(), 30, -1)).ids())
                    .hasSize(30);
            assertThat(bad.await()).isEqualTo(FinishReason.CANCELLED);
        }
    }

    @Test
    void drainingFinishesWhatIsThereAndTakesNoMore() throws Exception {
        open(modelPath("tiny"), false);
        Engine engine = new Engine(host, pool, options());
        Answer answer = new Answer();
        engine.submit(request(new long[] {3}, List.of(AdapterUse.of("one")), 40, -1), answer);
        engine.drain(Duration.ofSeconds(30));
        assertThat(answer.await()).isEqualTo(FinishReason.LENGTH);
        assertThatThrownBy(() -> engine.submit(request(new long[] {3}, List.of(), 4, -1), new Answer()))
                .isInstanceOf(EngineBusyException.class)
                .hasMessageContaining("shutting down");
    }

    @Test
    void samplingIsASeedsAndTheLikeliestTokensAreTold() throws Exception {
        open(modelPath("tiny"), false);
        try (Engine engine = new Engine(host, pool, options())) {
            List<long[]> drawn = new ArrayList<>();
            for (long seed : new long[] {1, 1, 2}) {
                Sampling sampling = new Sampling(20, 1.5, 0.95, 30, seed, 3);
                Answer answer = run(engine, new GenerationRequest(new long[] {7, 8}, List.of(), sampling, true));
                drawn.add(answer.ids());
                for (GeneratedToken token : answer.tokens) {
                    assertThat(token.top()).hasSize(3);
                    assertThat(token.top().get(0).logprob()).isGreaterThanOrEqualTo(token.logprob());
                    assertThat(token.top().get(0).logprob())
                            .isGreaterThanOrEqualTo(token.top().get(2).logprob());
                }
            }
            assertThat(drawn.get(0)).isEqualTo(drawn.get(1)).isNotEqualTo(drawn.get(2));
        }
    }

    /** Memory that a page had before must never reach an answer. */
    @Test
    void pagesThatWereUsedBeforeLeaveNoTrace() throws Exception {
        open(modelPath("tiny"), false);
        torch.manual_seed(1);
        EngineOptions tight = options().withPages(10, 6).withMaxSequences(2).withPrefixCache(true);
        Random random = new Random(12);
        List<GenerationRequest> requests = new ArrayList<>();
        for (int i = 0; i < 12; i++) {
            requests.add(request(prompt(random, 1 + i * 2), KINDS.get(i % 5), 9, 0));
        }
        List<List<GeneratedToken>> fresh = new ArrayList<>();
        for (GenerationRequest request : requests) {
            try (Engine engine = new Engine(host, pool, options())) {
                fresh.add(run(engine, request).tokens);
            }
        }
        try (Engine engine = new Engine(host, pool, tight)) {
            for (int round = 0; round < 3; round++) {
                for (int i = 0; i < requests.size(); i++) {
                    assertThat(run(engine, requests.get(i)).tokens).isEqualTo(fresh.get(i));
                }
            }
        }
    }
}
