package org.lora4j.bench;

import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import org.lora4j.model.HostModel;
import org.lora4j.model.causal.CausalLM;
import org.lora4j.model.causal.ServedModels;
import org.lora4j.model.causal.Tokenizer;
import org.lora4j.serve.AdapterId;
import org.lora4j.serve.AdapterPool;
import org.lora4j.serve.AdapterRegistry;
import org.lora4j.serve.AdapterUse;
import org.lora4j.serve.FinishReason;
import org.lora4j.serve.GeneratedToken;
import org.lora4j.serve.GenerationRequest;
import org.lora4j.serve.PoolOptions;
import org.lora4j.serve.Sampling;
import org.lora4j.serve.TokenSink;

/** The base that comes with the source, ready to be served by an engine. */
final class Hosted implements AutoCloseable {
    static final String[] ALL = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};

    final CausalLM model;
    final HostModel<CausalLM> host;
    final Tokenizer tokenizer;
    final AdapterRegistry registry;
    final AdapterPool pool;

    Hosted(PoolOptions options) throws IOException {
        this(options, new AdapterRegistry());
    }

    Hosted(PoolOptions options, AdapterRegistry known) throws IOException {
        registry = known;
        model = CausalLM.load(ServedModels.DEMO);
        tokenizer = Tokenizer.load(ServedModels.DEMO);
        host = HostModel.of(model);
        pool = new AdapterPool(registry, host, options);
    }

    /** Collects one answer. */
    static final class Answer implements TokenSink {
        final List<Long> tokens = new ArrayList<>();
        final List<Long> times = new ArrayList<>();
        final CountDownLatch done = new CountDownLatch(1);
        volatile List<AdapterId> adapters = List.of();
        volatile Exception failure;

        @Override
        public void begun(List<AdapterId> ids, int cached) {
            adapters = ids;
        }

        @Override
        public void token(GeneratedToken token) {
            tokens.add(token.id());
            times.add(System.nanoTime());
        }

        @Override
        public void done(FinishReason reason) {
            done.countDown();
        }

        @Override
        public void failed(Exception reason) {
            failure = reason;
            done.countDown();
        }

        void await() throws Exception {
            done.await();
            if (failure != null) {
                throw failure;
            }
        }
    }

    static GenerationRequest greedy(long[] prompt, List<AdapterUse> adapters, int tokens) {
        return new GenerationRequest(prompt, adapters, Sampling.greedy(tokens), true);
    }

    static Path adapter(Path folder, int rank, long seed, String... targets) throws IOException {
        return ServedModels.adapter(folder, ServedModels.DEMO, rank, 2.0 * rank, seed, 0.05, targets);
    }

    /** Resident memory of this process in bytes. */
    static long resident() throws IOException {
        for (String line : java.nio.file.Files.readAllLines(Path.of("/proc/self/status"))) {
            if (line.startsWith("VmRSS:")) {
                return Long.parseLong(line.replaceAll("\\D", "")) << 10;
            }
        }
        throw new IOException("/proc/self/status has no VmRSS");
    }

    /** A quantile of unsorted values. */
    static double quantile(List<Double> values, double share) {
        List<Double> sorted = values.stream().sorted().toList();
        return sorted.get((int) Math.min(sorted.size() - 1, Math.ceil(share * sorted.size()) - 1));
    }

    @Override
    public void close() {
        pool.close();
        host.close();
        model.close();
        tokenizer.close();
    }
}
