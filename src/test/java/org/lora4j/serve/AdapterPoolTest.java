package org.lora4j.serve;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.model.HostModel;

class AdapterPoolTest {
    private static final Duration SOON = Duration.ofSeconds(20);

    @TempDir
    Path folder;

    private HostModel<SmallNet> host;
    private AdapterRegistry registry;

    @BeforeEach
    void open() {
        host = HostModel.of(new SmallNet(ScalarType.Float));
        registry = new AdapterRegistry();
    }

    @AfterEach
    void close() {
        host.close();
    }

    /** An adapter of rank 2 on lin0: 2 * 10 and 21 * 2 floats, in whole cache lines. */
    private static final long BYTES = 128 + 192;

    private Path write(String name, long seed) throws IOException {
        return SmallNet.adapter(folder.resolve(name), SmallNet.config(2, 3, "lin0"), seed, ScalarType.Float);
    }

    private void register(String... names) throws IOException {
        for (String name : names) {
            registry.register(name, write(name, name.hashCode()));
        }
    }

    private AdapterPool pool(long adapters) {
        return new AdapterPool(registry, host, PoolOptions.of(adapters * BYTES));
    }

    private static float first(Lease lease) {
        try (PointerScope scope = new PointerScope()) {
            Tensor a = java.util.Objects.requireNonNull(lease.adapter().at("lin0"))
                    .updates()
                    .get(0)
                    .a();
            return new FloatPointer(a.data_ptr()).get(0);
        }
    }

    /** Waits until the pool answers anything but Loading. */
    private static Acquisition settle(AdapterPool pool, String name) throws Exception {
        while (true) {
            Acquisition answer = pool.acquire(name);
            if (!(answer instanceof Acquisition.Loading loading)) {
                return answer;
            }
            loading.done().get(20, TimeUnit.SECONDS);
        }
    }

    @Test
    void answersLoadingThenReadyAndCountsBytesExactly() throws Exception {
        register("a");
        try (AdapterPool pool = pool(3)) {
            assertThat(pool.acquire("a")).isInstanceOf(Acquisition.Loading.class);
            try (Lease lease = pool.acquire("a", SOON)) {
                assertThat(lease.id().name()).isEqualTo("a");
                assertThat(lease.adapter().bytes()).isEqualTo(BYTES);
                assertThat(pool.stats().used()).isEqualTo(BYTES);
                assertThat(pool.stats().leased()).isEqualTo(1);
            }
            PoolStats stats = pool.stats();
            assertThat(stats.leased()).isZero();
            assertThat(stats.resident()).isEqualTo(1);
            assertThat(List.of(stats.misses(), stats.loads(), stats.evictions()))
                    .containsExactly(1L, 1L, 0L);
        }
    }

    @Test
    void evictsTheLeastRecentlyUsedThatIsFreeAndNotPinned() throws Exception {
        register("a", "b", "c", "d", "e");
        try (AdapterPool pool = pool(3)) {
            pool.pin("a");
            pool.acquire("a", SOON).close();
            Lease held = pool.acquire("b", SOON);
            pool.acquire("c", SOON).close();
            pool.acquire("d", SOON).close();
            assertThat(pool.resident("c")).isEmpty();
            assertThat(pool.resident("a")).isPresent();
            held.close();
            pool.acquire("e", SOON).close();
            // d was used after c but before the lease of b was given back.
            assertThat(pool.resident("d")).isEmpty();
            assertThat(pool.resident("b")).isPresent();
            pool.unpin("a");
            pool.acquire("c", SOON).close();
            assertThat(pool.resident("a")).isEmpty();
            assertThat(pool.stats().evictions()).isEqualTo(3);
        }
    }

    @Test
    void saysWhatHoldsThePoolWhenNothingCanBeEvicted() throws Exception {
        register("a", "b", "c");
        try (AdapterPool pool = pool(2)) {
            pool.pin("a");
            pool.acquire("a", SOON).close();
            try (Lease held = pool.acquire("b", SOON)) {
                Acquisition answer = settle(pool, "c");
                assertThat(answer).isInstanceOf(Acquisition.AtCapacity.class);
                Acquisition.AtCapacity full = (Acquisition.AtCapacity) answer;
                assertThat(full.needed()).isEqualTo(BYTES);
                assertThat(full.free()).isZero();
                assertThat(full.held()).containsExactly("a", "b");
                assertThat(full.message())
                        .contains("[a, b] are in use, pinned or loading")
                        .contains("larger");
                assertThat(pool.stats().evictions()).isZero();
            }
            assertThat(settle(pool, "c")).isInstanceOf(Acquisition.Ready.class);
        }
    }

    @Test
    void anAdapterLargerThanThePoolFails() throws Exception {
        registry.register(
                "big", SmallNet.adapter(folder.resolve("big"), SmallNet.config(9, 3, "lin0"), 1, ScalarType.Float));
        try (AdapterPool pool = pool(1)) {
            Acquisition answer = settle(pool, "big");
            assertThat(answer).isInstanceOf(Acquisition.Failed.class);
            assertThat(((Acquisition.Failed) answer).message()).contains("the whole pool has " + BYTES);
        }
    }

    @Test
    void aBrokenAdapterFailsWithItsReasonAndTakesNoRoom() throws Exception {
        register("a", "broken");
        Files.write(folder.resolve("broken/adapter_model.safetensors"), new byte[] {1, 2, 3});
        try (AdapterPool pool = pool(2)) {
            Acquisition answer = settle(pool, "broken");
            assertThat(answer).isInstanceOf(Acquisition.Failed.class);
            assertThat(((Acquisition.Failed) answer).reason()).contains("adapter_model.safetensors");
            assertThat(pool.stats().used()).isZero();
            assertThat(pool.stats().failures()).isEqualTo(1);
            assertThat(pool.state(registry.get("broken"))).isEqualTo("failed");
            assertThat(settle(pool, "a")).isInstanceOf(Acquisition.Ready.class);
            // A new version is not held against the old one's failure.
            pool.replace("broken", write("mended", 5)).get(20, TimeUnit.SECONDS);
            assertThat(settle(pool, "broken")).isInstanceOf(Acquisition.Ready.class);
        }
    }

    @Test
    void unknownNamesSayHowManyThereAre() throws Exception {
        register("a");
        try (AdapterPool pool = pool(1)) {
            assertThatThrownBy(() -> pool.acquire("b"))
                    .isInstanceOf(UnknownAdapterException.class)
                    .hasMessageContaining("\"b\" among the 1");
            assertThatThrownBy(() -> registry.register("a", folder)).hasMessageContaining("load_inplace");
            assertThatThrownBy(() -> registry.register(" ", folder)).hasMessageContaining("cannot be called");
        }
    }

    @Test
    void replacingLetsOldLeasesFinishOnTheOldWeights() throws Exception {
        register("a");
        try (AdapterPool pool = pool(2)) {
            Lease old = pool.acquire("a", SOON);
            float before = first(old);
            pool.replace("a", write("fresh", 77)).get(20, TimeUnit.SECONDS);
            try (Lease fresh = pool.acquire("a", SOON)) {
                assertThat(fresh.id().version()).isGreaterThan(old.id().version());
                assertThat(fresh.id().hash()).isNotEqualTo(old.id().hash());
                assertThat(first(fresh)).isNotEqualTo(before);
                assertThat(first(old)).isEqualTo(before);
                assertThat(pool.stats().used()).isEqualTo(2 * BYTES);
            }
            old.close();
            assertThat(pool.stats().used()).isEqualTo(BYTES);
            assertThatThrownBy(old::adapter).hasMessageContaining("closed");
        }
    }

    @Test
    void aReplacementThatCannotBeReadChangesNothing() throws Exception {
        register("a");
        try (AdapterPool pool = pool(2)) {
            AdapterId before;
            try (Lease lease = pool.acquire("a", SOON)) {
                before = lease.id();
            }
            assertThatThrownBy(
                            () -> pool.replace("a", folder.resolve("nowhere")).get(20, TimeUnit.SECONDS))
                    .isInstanceOf(ExecutionException.class);
            try (Lease lease = pool.acquire("a", SOON)) {
                assertThat(lease.id()).isEqualTo(before);
            }
        }
    }

    @Test
    void aRemovedAdapterServesItsLeasesAndNobodyElse() throws Exception {
        register("a");
        try (AdapterPool pool = pool(2)) {
            Lease lease = pool.acquire("a", SOON);
            float before = first(lease);
            pool.remove("a");
            assertThatThrownBy(() -> pool.acquire("a")).isInstanceOf(UnknownAdapterException.class);
            assertThat(first(lease)).isEqualTo(before);
            lease.close();
            lease.close();
            assertThat(pool.stats().used()).isZero();
            // The same name again is another version.
            assertThat(registry.register("a", folder.resolve("a")).version())
                    .isGreaterThan(lease.id().version());
        }
    }

    @Test
    void whatWasEvictedComesBackFromHostMemory() throws Exception {
        register("a", "b");
        try (AdapterPool pool =
                new AdapterPool(registry, host, PoolOptions.of(BYTES).withHostBytes(2 * BYTES))) {
            float before;
            try (Lease lease = pool.acquire("a", SOON)) {
                before = first(lease);
            }
            pool.acquire("b", SOON).close();
            assertThat(pool.resident("a")).isEmpty();
            Files.delete(folder.resolve("a/adapter_model.safetensors"));
            try (Lease lease = pool.acquire("a", SOON)) {
                assertThat(first(lease)).isEqualTo(before);
            }
            assertThat(pool.stats().hostHits()).isEqualTo(1);
            assertThat(pool.stats().hostUsed()).isEqualTo(2 * BYTES);
        }
    }

    @Test
    void prefetchLoadsWithoutALease() throws Exception {
        register("a");
        try (AdapterPool pool = pool(1)) {
            pool.prefetch("a");
            pool.prefetch("unknown");
            assertThat(settle(pool, "a")).isInstanceOf(Acquisition.Ready.class);
            assertThat(pool.stats().misses()).isEqualTo(1);
        }
    }

    @Test
    void namesAreFoundWhenTheyAreFirstUsed() throws Exception {
        write("lazy", 4);
        AdapterRegistry lazy = new AdapterRegistry(new AdapterRoots(List.of(folder)));
        try (AdapterPool pool = new AdapterPool(lazy, host, PoolOptions.of(4 * BYTES))) {
            assertThat(lazy.size()).isZero();
            pool.acquire("lazy", SOON).close();
            assertThat(lazy.entries()).extracting(AdapterEntry::name).containsExactly("lazy");
            assertThatThrownBy(() -> pool.acquire("../lazy")).isInstanceOf(UnknownAdapterException.class);
            assertThatThrownBy(() -> pool.acquire("missing")).isInstanceOf(UnknownAdapterException.class);
        }
    }

    /** Ten thousand names over fifty folders, room for a hundred, drawn by Zipf's law on several threads. */
    @Test
    void tenThousandAdaptersShareRoomForAHundred() throws Exception {
        int names = 10_000;
        int room = 100;
        List<Path> paths = new ArrayList<>();
        Map<Path, Float> expected = new ConcurrentHashMap<>();
        for (int i = 0; i < 50; i++) {
            paths.add(write("shared" + i, i));
        }
        for (int i = 0; i < names; i++) {
            registry.register("a" + i, paths.get(i % paths.size()));
        }
        double[] cumulated = new double[names];
        double sum = 0;
        for (int i = 0; i < names; i++) {
            sum += 1 / Math.pow(i + 1, 1.1);
            cumulated[i] = sum;
        }
        double total = sum;
        try (AdapterPool pool =
                new AdapterPool(registry, host, PoolOptions.of(room * BYTES).withLoaders(2))) {
            ExecutorService threads = Executors.newFixedThreadPool(4);
            List<Future<?>> results = new ArrayList<>();
            for (int t = 0; t < 4; t++) {
                long seed = t;
                results.add(threads.submit(() -> {
                    Random random = new Random(seed);
                    for (int i = 0; i < 500; i++) {
                        double at = random.nextDouble() * total;
                        int index = java.util.Arrays.binarySearch(cumulated, at);
                        String name = "a" + Math.min(names - 1, index < 0 ? -index - 1 : index);
                        try (Lease lease = pool.acquire(name, SOON)) {
                            assertThat(lease.id().name()).isEqualTo(name);
                            float value = first(lease);
                            Float other =
                                    expected.putIfAbsent(registry.get(name).path(), value);
                            assertThat(other == null || other == value).isTrue();
                        }
                        assertThat(pool.stats().used()).isLessThanOrEqualTo(room * BYTES);
                    }
                    return null;
                }));
            }
            for (Future<?> result : results) {
                result.get(60, TimeUnit.SECONDS);
            }
            threads.shutdown();
            PoolStats stats = pool.stats();
            assertThat(stats.leased()).isZero();
            assertThat(stats.evictions()).isPositive();
            assertThat(stats.used()).isEqualTo(stats.resident() * BYTES);
            assertThat(stats.hits() + stats.misses()).isGreaterThanOrEqualTo(2000);
        }
    }

    /** Loads, replacements, removals and evictions at once: a lease's weights never change under it. */
    @ParameterizedTest
    @ValueSource(longs = {1, 2, 3})
    void leasesHoldWhileEverythingAroundThemChanges(long seed) throws Exception {
        List<Path> versions = new ArrayList<>();
        for (int i = 0; i < 6; i++) {
            versions.add(write("v" + i, 100 + i));
        }
        for (int i = 0; i < 4; i++) {
            registry.register("n" + i, versions.get(i));
        }
        Map<String, Float> byHash = new ConcurrentHashMap<>();
        try (AdapterPool pool =
                new AdapterPool(registry, host, PoolOptions.of(3 * BYTES).withLoaders(2))) {
            ExecutorService threads = Executors.newFixedThreadPool(4);
            List<Future<?>> results = new ArrayList<>();
            for (int t = 0; t < 4; t++) {
                Random random = new Random(seed * 31 + t);
                results.add(threads.submit(() -> {
                    for (int i = 0; i < 150; i++) {
                        String name = "n" + random.nextInt(4);
                        int what = random.nextInt(10);
                        if (what == 0) {
                            pool.replace(name, versions.get(random.nextInt(6)));
                        } else if (what == 1) {
                            try {
                                pool.remove(name);
                            } catch (UnknownAdapterException e) {
                                continue;
                            }
                            try {
                                registry.register(name, versions.get(random.nextInt(6)));
                            } catch (IllegalArgumentException taken) {
                                assertThat(taken).hasMessageContaining("already");
                            }
                        } else {
                            use(pool, name, byHash);
                        }
                    }
                    return null;
                }));
            }
            for (Future<?> result : results) {
                result.get(60, TimeUnit.SECONDS);
            }
            threads.shutdown();
            for (int i = 0; i < 4; i++) {
                pool.prefetch("n" + i);
            }
            assertThat(pool.stats().leased()).isZero();
            assertThat(pool.stats().used()).isBetween(0L, 3 * BYTES);
        }
        assertThat(byHash).hasSizeBetween(2, 6);
        assertThat(byHash.values()).doesNotHaveDuplicates();
    }

    private static void use(AdapterPool pool, String name, Map<String, Float> byHash) throws Exception {
        Acquisition answer;
        try {
            answer = settle(pool, name);
        } catch (UnknownAdapterException removed) {
            return;
        }
        if (answer instanceof Acquisition.Ready ready) {
            try (Lease lease = ready.lease()) {
                Float known = byHash.putIfAbsent(lease.id().hash(), first(lease));
                Thread.yield();
                assertThat(known == null || known == first(lease)).isTrue();
            }
        } else {
            assertThat(answer).isInstanceOf(Acquisition.AtCapacity.class);
        }
    }
}
