package org.lora4j.serve;

import java.time.Duration;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.Iterator;
import java.util.List;
import java.util.Set;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.locks.LockSupport;
import org.lora4j.model.HostModel;
import org.lora4j.model.causal.CausalLM;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Continues prompts of many requests at once, each with its own adapters.
 *
 * <p>Requests join and leave at every step (continuous batching, Yu et al., OSDI 2022). A step computes one token of each
 * request that is being continued and, with what is left of its tokens, stretches of prompts. Keys and values lie in pages
 * (Kwon et al., SOSP 2023); a request starts when its adapters are in memory and the pages it may need at most are promised
 * to it, so none ever has to stop for another.
 *
 * <p>Without sampling, a request's tokens do not depend on what else is being computed, see {@link CausalLM#hidden(
 * org.lora4j.model.causal.PagedBatch, org.lora4j.model.causal.PagedCache)}.
 *
 * <p>One thread computes; methods may be called from any.
 */
public final class Engine implements AutoCloseable {
    private static final Logger LOG = LoggerFactory.getLogger(Engine.class);
    private static final long IDLE_NANOS = Duration.ofMillis(5).toNanos();

    private final CausalLM model;
    private final AdapterPool pool;
    private final EngineOptions options;
    private final EngineStep step;
    private final PagePool pages;
    private final ConcurrentLinkedQueue<Sequence> arrivals = new ConcurrentLinkedQueue<>();
    private final WaitingRequests waiting = new WaitingRequests();
    private final List<Sequence> running = new ArrayList<>();
    private final Set<Long> ends;
    private final AtomicInteger open = new AtomicInteger();
    private final Counters counters = new Counters();
    private final Thread thread;
    private final CountDownLatch stopped = new CountDownLatch(1);
    private volatile boolean draining;
    private volatile boolean stopping;

    /** Starts an engine. The model and the pool must outlive it. */
    public Engine(HostModel<CausalLM> host, AdapterPool pool, EngineOptions options) {
        this.model = host.base();
        this.pool = pool;
        this.options = options;
        this.ends = Set.copyOf(model.config().eosTokenIds());
        this.step = new EngineStep(host, options);
        this.pages = new PagePool(options.pages(), options.pageTokens());
        this.thread = new Thread(this::run, "lora4j-engine");
        thread.setDaemon(true);
        thread.start();
    }

    /** The model's limits and the engine's. */
    public EngineOptions options() {
        return options;
    }

    /**
     * Begins a request.
     *
     * @throws IllegalArgumentException if it has more tokens than the engine or its cache takes, or one the model lacks
     * @throws UnknownAdapterException if an adapter is not known
     * @throws EngineBusyException if too many requests wait, or the engine is shutting down
     */
    public Generation submit(GenerationRequest request, TokenSink sink) {
        check(request);
        if (draining) {
            throw EngineBusyException.stopped();
        }
        if (open.incrementAndGet() > options.maxSequences() + options.maxWaiting()) {
            open.decrementAndGet();
            throw EngineBusyException.full(
                    "too many requests: " + options.maxWaiting() + " wait already; try again in a while");
        }
        Sequence sequence = new Sequence(request, sink, this::wake);
        arrivals.add(sequence);
        wake();
        return sequence;
    }

    private void check(GenerationRequest request) {
        int prompt = request.prompt().length;
        int added = request.sampling().maxTokens();
        if ((long) prompt + added > options.maxTokens()) {
            throw new IllegalArgumentException("the prompt has " + prompt + " tokens and max_tokens is " + added
                    + ", together more than the " + options.maxTokens() + " a request may have: shorten one of them");
        }
        for (long token : request.prompt()) {
            if (token < 0 || token >= model.config().vocabSize()) {
                throw new IllegalArgumentException("the prompt has token " + token + ", but the model has tokens 0 to "
                        + (model.config().vocabSize() - 1) + ": use its tokenizer");
            }
        }
        for (AdapterUse use : request.adapters()) {
            pool.registry().get(use.name());
        }
    }

    private void wake() {
        LockSupport.unpark(thread);
    }

    private void run() {
        try {
            while (!stopping) {
                if (!turn()) {
                    LockSupport.parkNanos(this, IDLE_NANOS);
                }
            }
        } catch (Throwable e) {
            LOG.error("the engine stopped", e);
            draining = true;
        } finally {
            arrivals.forEach(each -> waiting.add(each, running));
            for (Sequence each : waiting.all()) {
                end(each);
                fail(each, EngineBusyException.stopped());
            }
            List<Sequence> left = List.copyOf(running);
            running.clear();
            for (Sequence each : left) {
                leave(each);
                fail(each, EngineBusyException.stopped());
            }
            step.close();
            stopped.countDown();
        }
    }

    /** One step; false if there was nothing to compute. */
    private boolean turn() {
        for (Sequence each = arrivals.poll(); each != null; each = arrivals.poll()) {
            waiting.add(each, running);
            counters.waits(each, true);
        }
        dropEnded();
        admit();
        counters.waiting = waiting.size();
        counters.running = running.size();
        if (running.isEmpty()) {
            return false;
        }
        // Those that are being continued first, then prompts of the adapters that were served least.
        List<Sequence> order = new ArrayList<>(running);
        order.sort(Comparator.comparing((Sequence each) -> !each.decodes()).thenComparingLong(waiting::served));
        List<EngineStep.Work> works = step.plan(order);
        long start = System.nanoTime();
        try {
            step.run(works, pages);
        } catch (RuntimeException e) {
            LOG.error("a step failed; its requests fail with it", e);
            for (EngineStep.Work work : works) {
                running.remove(work.sequence());
                leave(work.sequence());
                fail(work.sequence(), new IllegalStateException("the step of the request failed", e));
            }
            return true;
        }
        counters.step(System.nanoTime() - start, works);
        for (EngineStep.Work work : works) {
            waiting.serve(work.sequence(), work.count());
            GeneratedToken token = work.result;
            if (token != null) {
                deliver(work.sequence(), token);
            }
        }
        waiting.forgetIdle(running);
        return true;
    }

    private void deliver(Sequence sequence, GeneratedToken token) {
        sequence.add(token.id());
        boolean ended = ends.contains(token.id()) && !sequence.request.ignoreEnd();
        boolean full = sequence.added() == sequence.request.sampling().maxTokens();
        tell(sequence, () -> sequence.sink.token(token));
        if (ended || full) {
            running.remove(sequence);
            leave(sequence);
            tell(sequence, () -> sequence.sink.done(ended ? FinishReason.STOP : FinishReason.LENGTH));
        }
    }

    private void dropEnded() {
        for (Iterator<Sequence> all = running.iterator(); all.hasNext(); ) {
            Sequence each = all.next();
            if (each.cancelled) {
                all.remove();
                leave(each);
                counters.cancelled++;
                tell(each, () -> each.sink.done(FinishReason.CANCELLED));
            }
        }
        long now = System.nanoTime();
        for (Sequence each : waiting.all()) {
            boolean late = now - each.arrived > options.waitLimit().toNanos();
            if (each.cancelled || late) {
                leaveQueue(each);
                end(each);
                if (each.cancelled) {
                    counters.cancelled++;
                    tell(each, () -> each.sink.done(FinishReason.CANCELLED));
                } else {
                    fail(
                            each,
                            EngineBusyException.full("the request waited for "
                                    + options.waitLimit().toSeconds()
                                    + " s without room for it or its adapters: try again in a while"));
                }
            }
        }
    }

    private void admit() {
        boolean more = true;
        while (more && running.size() < options.maxSequences()) {
            more = false;
            for (Sequence each : waiting.heads()) {
                if (!fits(each)) {
                    continue;
                }
                int wanted = pages.pagesFor(each.mostTokens());
                if (!pages.reserve(wanted)) {
                    // Later ones must not take the room this one waits for.
                    return;
                }
                each.reserved = wanted;
                if (start(each)) {
                    more = true;
                    break;
                }
                pages.unreserve(wanted);
                each.reserved = 0;
            }
        }
    }

    /** Whether its adapter has not the most requests running that it may have. */
    private boolean fits(Sequence sequence) {
        int most = Math.max(1, (int) (options.maxSequences() * options.maxShare()));
        return running.stream()
                        .filter(each -> each.group().equals(sequence.group()))
                        .count()
                < most;
    }

    private void leaveQueue(Sequence sequence) {
        waiting.remove(sequence);
        counters.waits(sequence, false);
    }

    /** Takes a request in, if its adapters are there. False also if it failed. */
    private boolean start(Sequence sequence) {
        for (AdapterUse use : sequence.request.adapters()) {
            Acquisition answer;
            try {
                answer = pool.acquire(use.name());
            } catch (UnknownAdapterException e) {
                answer = new Acquisition.Failed(use.name(), "it was unloaded meanwhile");
            }
            if (answer instanceof Acquisition.Ready ready) {
                sequence.leases.add(ready.lease());
                sequence.parts.add(new BatchPlan.Part(ready.lease(), use.factor()));
                continue;
            }
            giveBack(sequence);
            if (answer instanceof Acquisition.Loading loading) {
                loading.done().whenComplete((nothing, failure) -> wake());
            } else if (answer instanceof Acquisition.Failed failed) {
                leaveQueue(sequence);
                end(sequence);
                fail(sequence, new AdapterFailedException(failed.message()));
            }
            return false;
        }
        leaveQueue(sequence);
        sequence.root = sequence.parts.stream()
                .map(part -> List.of(part.lease().id().hash(), part.factor()))
                .toList();
        if (options.prefixCache()) {
            sequence.pages.addAll(pages.match(sequence.root, sequence.request.prompt()));
            sequence.computed = sequence.pages.size() * options.pageTokens();
        }
        running.add(sequence);
        counters.begun(sequence);
        List<AdapterId> ids = sequence.leases.stream().map(Lease::id).toList();
        tell(sequence, () -> sequence.sink.begun(ids, sequence.computed));
        return true;
    }

    private void leave(Sequence sequence) {
        sequence.pages.forEach(pages::release);
        sequence.pages.clear();
        pages.unreserve(sequence.reserved);
        sequence.reserved = 0;
        giveBack(sequence);
        end(sequence);
        // Whoever is told of the end finds it counted.
        counters.running = running.size();
    }

    private static void giveBack(Sequence sequence) {
        sequence.leases.forEach(Lease::close);
        sequence.leases.clear();
        sequence.parts.clear();
    }

    private void end(Sequence sequence) {
        open.decrementAndGet();
        counters.ended(sequence);
    }

    private void fail(Sequence sequence, Exception reason) {
        counters.failed++;
        tell(sequence, () -> sequence.sink.failed(reason));
    }

    /** A receiver that throws loses its request and harms no other. */
    private static void tell(Sequence sequence, Runnable message) {
        try {
            message.run();
        } catch (RuntimeException e) {
            LOG.debug("the receiver of a request failed", e);
            sequence.cancelled = true;
        }
    }

    /** Whether it computes: not closed, nor stopped by an error. */
    public boolean isRunning() {
        return stopped.getCount() > 0;
    }

    /** What the engine does and has done. */
    public EngineStats stats() {
        return counters.stats(options, pages);
    }

    /** Finishes the requests it has and takes no more, for as long as given; then ends those that are left. */
    public void drain(Duration limit) throws InterruptedException {
        draining = true;
        long end = System.nanoTime() + limit.toNanos();
        while (open.get() > 0 && System.nanoTime() < end) {
            TimeUnit.MILLISECONDS.sleep(5);
        }
        close();
    }

    /** Ends all requests and stops the thread. */
    @Override
    public void close() {
        draining = true;
        stopping = true;
        wake();
        try {
            stopped.await();
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
    }
}
