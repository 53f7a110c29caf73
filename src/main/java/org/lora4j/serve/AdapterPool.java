package org.lora4j.serve;

import java.io.IOException;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import org.bytedeco.pytorch.Device;
import org.jspecify.annotations.Nullable;
import org.lora4j.layer.PooledAdapter;
import org.lora4j.model.AdapterImage;
import org.lora4j.model.HostModel;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The adapters that are in memory, within a budget of bytes: each takes what its ranks take, and there are as many as fit.
 *
 * <p>{@link #acquire} never waits. Adapters are read on threads of the pool; to make room, those that nobody uses and that
 * are not pinned are evicted, the least recently used first. A {@link Lease} keeps the weights it was given, also while the
 * name gets others. Safe for several threads.
 */
public final class AdapterPool implements AutoCloseable {
    private static final Logger LOG = LoggerFactory.getLogger(AdapterPool.class);

    /** How long a failure is remembered, so that broken files are not read for every request. */
    private static final long RETRY_NANOS = Duration.ofSeconds(5).toNanos();

    /** How long {@link #close} waits for a read to end. */
    private static final Duration LONGEST_READ = Duration.ofMinutes(1);

    private record Failure(String reason, long at) {}

    private final AdapterRegistry registry;
    private final AdapterLoader loader;
    private final Device device;
    private final PoolOptions options;
    private final ExecutorService loaders;
    private final Map<AdapterEntry, Slot> slots = new HashMap<>();
    private final Map<AdapterEntry, Failure> failures = new HashMap<>();
    /** The bytes of adapters seen before, so that room is made before they are read. */
    private final Map<AdapterEntry, Long> sizes = new HashMap<>();

    private final Set<String> pinned = new HashSet<>();
    private final HostCache host;
    private long used;
    private long clock;
    private long hits;
    private long misses;
    private long hostHits;
    private long loads;
    private long failed;
    private long evictions;
    private long loadedBytes;
    private long loadNanos;
    private boolean closed;
    private PoolListener listener = PoolListener.NONE;

    /** A pool for a model's device. */
    public AdapterPool(AdapterRegistry registry, HostModel<?> model, PoolOptions options) {
        this(registry, model::read, model.device(), options);
    }

    /** As {@link #AdapterPool(AdapterRegistry, HostModel, PoolOptions)}, with another way to read adapters. */
    public AdapterPool(AdapterRegistry registry, AdapterLoader loader, Device device, PoolOptions options) {
        this.registry = registry;
        this.loader = loader;
        this.device = device;
        this.options = options;
        this.host = new HostCache(options.hostBytes());
        this.loaders = Executors.newFixedThreadPool(options.loaders(), task -> {
            Thread thread = new Thread(task, "lora4j-loader");
            thread.setDaemon(true);
            return thread;
        });
    }

    /** Sets who hears of loads and evictions. */
    public synchronized void listener(PoolListener next) {
        listener = next;
    }

    /** The adapters this pool may load. */
    public AdapterRegistry registry() {
        return registry;
    }

    /**
     * Asks for an adapter; begins to load it if it is not in memory.
     *
     * @throws UnknownAdapterException if there is none of this name
     */
    public Acquisition acquire(String name) {
        return acquire(registry.get(name));
    }

    private synchronized Acquisition acquire(AdapterEntry entry) {
        checkOpen();
        Slot slot = slots.get(entry);
        if (slot != null && slot.isLoaded()) {
            hits++;
            listener.asked(entry, true);
            return new Acquisition.Ready(lease(slot));
        }
        if (slot != null) {
            return new Acquisition.Loading(slot.done);
        }
        Failure failure = failures.get(entry);
        if (failure != null) {
            if (System.nanoTime() - failure.at() < RETRY_NANOS) {
                return new Acquisition.Failed(entry.name(), failure.reason());
            }
            failures.remove(entry);
        }
        Slot fresh = new Slot(entry);
        Long size = sizes.get(entry);
        if (size != null && !reserve(fresh, size)) {
            return refusal(entry, size);
        }
        misses++;
        listener.asked(entry, false);
        slots.put(entry, fresh);
        loaders.execute(() -> load(fresh));
        return new Acquisition.Loading(fresh.done);
    }

    private Acquisition refusal(AdapterEntry entry, long size) {
        if (size > options.bytes()) {
            return new Acquisition.Failed(
                    entry.name(),
                    "it needs " + size + " bytes and the whole pool has " + options.bytes() + "; make the pool larger");
        }
        List<String> held = slots.values().stream()
                .filter(slot -> slot.bytes > 0)
                .map(slot -> slot.entry.name())
                .sorted()
                .toList();
        return new Acquisition.AtCapacity(entry.name(), size, options.bytes() - used, options.bytes(), held);
    }

    /**
     * Asks for an adapter and waits until it is there or cannot be.
     *
     * @throws UnknownAdapterException if there is none of this name
     * @throws IllegalStateException if it cannot be loaded, or there is no room
     * @throws TimeoutException if it takes longer
     */
    public Lease acquire(String name, Duration timeout) throws TimeoutException, InterruptedException {
        long end = System.nanoTime() + timeout.toNanos();
        while (true) {
            Acquisition answer = acquire(name);
            if (answer instanceof Acquisition.Ready ready) {
                return ready.lease();
            }
            if (answer instanceof Acquisition.Loading loading) {
                await(loading.done(), end - System.nanoTime(), name);
            } else if (answer instanceof Acquisition.AtCapacity full) {
                throw new IllegalStateException(full.message());
            } else if (answer instanceof Acquisition.Failed failure) {
                throw new IllegalStateException(failure.message());
            }
        }
    }

    private static void await(CompletableFuture<Void> done, long nanos, String name)
            throws TimeoutException, InterruptedException {
        try {
            done.get(nanos, TimeUnit.NANOSECONDS);
        } catch (java.util.concurrent.ExecutionException e) {
            throw new IllegalStateException("loading adapter \"" + name + "\" failed", e);
        } catch (TimeoutException e) {
            TimeoutException named = new TimeoutException(
                    "adapter \"" + name + "\" was not loaded in time: give it longer, or see whether its disk is slow");
            named.initCause(e);
            throw named;
        }
    }

    /** Begins to load an adapter if it is known and there is room, for requests to come. */
    public void prefetch(String name) {
        AdapterEntry entry = registry.find(name);
        if (entry != null && acquire(entry) instanceof Acquisition.Ready ready) {
            ready.lease().close();
        }
    }

    /** Keeps an adapter in memory once it is there, used or not. Pinning a name that is not registered is remembered. */
    public synchronized void pin(String name) {
        pinned.add(name);
    }

    /** Lets an adapter be evicted again. */
    public synchronized void unpin(String name) {
        pinned.remove(name);
    }

    /**
     * Gives a name new weights. They are loaded beside the old ones, which requests get until the new ones are there, and
     * which those that have them keep. Without room for both, the old ones are let go first.
     *
     * @return the entry, once its name means it; fails, and changes nothing, if the weights cannot be loaded
     */
    public CompletableFuture<AdapterEntry> replace(String name, Path path) {
        AdapterEntry candidate = registry.candidate(name, path);
        CompletableFuture<AdapterEntry> result = new CompletableFuture<>();
        loaders.execute(() -> {
            try {
                synchronized (this) {
                    checkOpen();
                }
                AdapterImage image = loader.read(path);
                synchronized (this) {
                    if (closed) {
                        image.close();
                        throw new IllegalStateException("the pool is closed");
                    }
                    sizes.put(candidate, image.bytes());
                    Slot slot = new Slot(candidate);
                    if (image.bytes() <= options.bytes() && reserve(slot, image.bytes())) {
                        slots.put(candidate, slot);
                        place(slot, image);
                    }
                    host.put(candidate, image);
                    registry.publish(candidate);
                    retireOthers(candidate);
                }
                result.complete(candidate);
            } catch (IOException | RuntimeException e) {
                result.completeExceptionally(e);
            }
        });
        return result;
    }

    /**
     * Forgets an adapter. Its memory is freed with its last lease.
     *
     * @throws UnknownAdapterException if there is none of this name
     */
    public void remove(String name) {
        AdapterEntry entry = registry.remove(name);
        synchronized (this) {
            pinned.remove(name);
            retire(entry);
        }
    }

    private void retireOthers(AdapterEntry current) {
        List<AdapterEntry> old = new ArrayList<>(sizes.keySet());
        old.addAll(slots.keySet());
        for (AdapterEntry entry : old) {
            if (entry.name().equals(current.name()) && entry.version() < current.version()) {
                retire(entry);
            }
        }
    }

    private void retire(AdapterEntry entry) {
        sizes.remove(entry);
        failures.remove(entry);
        host.remove(entry);
        Slot slot = slots.get(entry);
        if (slot != null) {
            slot.retired = true;
            if (slot.isLoaded() && slot.leases == 0) {
                drop(slot);
            }
        }
    }

    private Lease lease(Slot slot) {
        slot.leases++;
        slot.lastUsed = ++clock;
        PooledAdapter adapter = java.util.Objects.requireNonNull(slot.adapter);
        return new Lease(java.util.Objects.requireNonNull(slot.id), adapter, () -> release(slot));
    }

    private synchronized void release(Slot slot) {
        slot.leases--;
        slot.lastUsed = ++clock;
        if (slot.leases == 0 && (slot.retired || closed)) {
            drop(slot);
        }
    }

    /** Makes room, or changes nothing. */
    private boolean reserve(Slot slot, long size) {
        long free = options.bytes() - used;
        List<Slot> victims = new ArrayList<>();
        List<Slot> idle = slots.values().stream()
                .filter(each -> each.isLoaded() && each.leases == 0 && !pinned.contains(each.entry.name()))
                .sorted(Comparator.comparingLong(each -> each.lastUsed))
                .toList();
        for (Slot victim : idle) {
            if (free >= size) {
                break;
            }
            victims.add(victim);
            free += victim.bytes;
        }
        if (free < size) {
            return false;
        }
        victims.forEach(victim -> {
            evictions++;
            listener.evicted(victim.entry);
            drop(victim);
        });
        slot.bytes = size;
        used += size;
        return true;
    }

    private void drop(Slot slot) {
        slots.remove(slot.entry, slot);
        used -= slot.bytes;
        slot.bytes = 0;
        if (slot.adapter != null) {
            slot.adapter.close();
        }
    }

    /** Runs on a loader. */
    private void load(Slot slot) {
        long start = System.nanoTime();
        @Nullable AdapterImage image = null;
        String reason = null;
        try {
            boolean wanted;
            synchronized (this) {
                wanted = !closed && !slot.retired;
                image = wanted ? host.take(slot.entry) : null;
                hostHits += image == null ? 0 : 1;
            }
            if (!wanted) {
                reason = "it was unloaded meanwhile";
            } else if (image == null) {
                image = loader.read(slot.entry.path());
            }
        } catch (IOException | RuntimeException e) {
            reason = e.getMessage() == null ? e.toString() : e.getMessage();
            LOG.warn("adapter {} in {} cannot be loaded: {}", slot.entry.name(), slot.entry.path(), reason);
        } catch (Error e) {
            reason = e.toString();
            LOG.error("adapter {} in {} cannot be loaded", slot.entry.name(), slot.entry.path(), e);
        }
        synchronized (this) {
            try {
                finish(slot, image, reason, start);
            } catch (RuntimeException e) {
                fail(slot, e.toString());
                LOG.error("adapter {} cannot be put on the device", slot.entry.name(), e);
            }
        }
        slot.done.complete(null);
    }

    private void finish(Slot slot, @Nullable AdapterImage image, @Nullable String reason, long start) {
        if (image == null) {
            fail(slot, reason == null ? "it failed" : reason);
            return;
        }
        if (closed || slot.retired) {
            image.close();
            drop(slot);
            return;
        }
        sizes.put(slot.entry, image.bytes());
        if (slot.bytes > 0 && slot.bytes != image.bytes()) {
            // The files changed since they were last read.
            used -= slot.bytes;
            slot.bytes = 0;
        }
        if (slot.bytes == 0 && (image.bytes() > options.bytes() || !reserve(slot, image.bytes()))) {
            // Whoever asks again is told so by acquire.
            slots.remove(slot.entry, slot);
            host.put(slot.entry, image);
            return;
        }
        place(slot, image);
        host.put(slot.entry, image);
        long nanos = System.nanoTime() - start;
        loads++;
        loadNanos += nanos;
        loadedBytes += slot.bytes;
        listener.loaded(slot.entry, slot.bytes, nanos);
    }

    private void place(Slot slot, AdapterImage image) {
        slot.adapter = image.to(device);
        slot.id = new AdapterId(slot.entry.name(), slot.entry.version(), image.hash());
        slot.lastUsed = ++clock;
        slot.done.complete(null);
    }

    private void fail(Slot slot, String reason) {
        drop(slot);
        failed++;
        if (!slot.retired) {
            failures.put(slot.entry, new Failure(reason, System.nanoTime()));
        }
        listener.failed(slot.entry);
    }

    /** Where an adapter stands: "ready", "loading", "failed" or "cold". */
    public synchronized String state(AdapterEntry entry) {
        Slot slot = slots.get(entry);
        if (slot != null) {
            return slot.isLoaded() ? "ready" : "loading";
        }
        return failures.containsKey(entry) ? "failed" : "cold";
    }

    /** The weights a name has in memory now, if any. */
    public synchronized Optional<AdapterId> resident(String name) {
        return slots.values().stream()
                .filter(slot -> slot.isLoaded() && slot.entry.name().equals(name) && !slot.retired)
                .map(slot -> slot.id)
                .filter(java.util.Objects::nonNull)
                .findFirst();
    }

    public synchronized PoolStats stats() {
        int resident = 0;
        int leased = 0;
        int held = 0;
        for (Slot slot : slots.values()) {
            resident += slot.isLoaded() ? 1 : 0;
            leased += slot.leases > 0 ? 1 : 0;
            held += slot.isLoaded() && pinned.contains(slot.entry.name()) ? 1 : 0;
        }
        return new PoolStats(
                options.bytes(),
                used,
                resident,
                leased,
                held,
                slots.size() - resident,
                host.used(),
                hits,
                misses,
                hostHits,
                loads,
                failed,
                evictions,
                loadedBytes,
                loadNanos);
    }

    private void checkOpen() {
        if (closed) {
            throw new IllegalStateException("the pool is closed");
        }
    }

    /**
     * Frees all adapters but those in use, which are freed with their leases. Waits for what is being read, so that the model
     * may be closed then.
     */
    @Override
    public void close() {
        synchronized (this) {
            closed = true;
            host.close();
            new ArrayList<>(slots.values())
                    .stream()
                            .filter(slot -> slot.isLoaded() && slot.leases == 0)
                            .forEach(this::drop);
        }
        loaders.shutdown();
        try {
            if (!loaders.awaitTermination(LONGEST_READ.toSeconds(), TimeUnit.SECONDS)) {
                LOG.warn("adapters are still being read after {}", LONGEST_READ);
            }
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
    }
}
