package org.lora4j.serve;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.lora4j.config.LoraConfig;
import org.lora4j.model.HostModel;
import org.lora4j.model.Lora;
import org.lora4j.model.LoraModel;

class BatchPlanTest {
    @TempDir
    Path folder;

    private static final Duration SOON = Duration.ofSeconds(20);

    /** Rank 1, an odd rank with patterns and rsLoRA, one layer alone, and bfloat16 in the file. */
    private Map<String, Path> adapters() throws IOException {
        LoraConfig patterns = SmallNet.config(3, 7, "lin0", "lin1").toBuilder()
                .rankPattern(Map.of("lin1", 5))
                .alphaPattern(Map.of("lin0", 2.5))
                .useRslora(true)
                .build();
        return Map.of(
                "one",
                        SmallNet.adapter(
                                folder.resolve("one"), SmallNet.config(1, 3, "lin0", "lin1"), 1, ScalarType.Float),
                "patterns", SmallNet.adapter(folder.resolve("patterns"), patterns, 2, ScalarType.Float),
                "half",
                        SmallNet.adapter(
                                folder.resolve("half"), SmallNet.config(4, 6, "lin1"), 3, ScalarType.BFloat16));
    }

    @ParameterizedTest
    @EnumSource(
            value = ScalarType.class,
            names = {"Float", "BFloat16"})
    void rowsGetWhatLoraModelGivesThem(ScalarType type) throws Exception {
        Map<String, Path> adapters = adapters();
        List<String> names = List.of("patterns", LoraModel.BASE, "one", "half", "patterns");
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard()) {
            Tensor x = torch.randn(new long[] {5, 10}).to(type);
            LoraModel<SmallNet> lora = Lora.load(new SmallNet(type), adapters.get("one"), "one");
            lora.loadAdapter(adapters.get("patterns"), "patterns");
            lora.loadAdapter(adapters.get("half"), "half");
            Tensor expected;
            try (LoraModel.Scope rows = lora.rows(names.toArray(String[]::new))) {
                expected = lora.base().forward(x);
            }

            AdapterRegistry registry = new AdapterRegistry();
            adapters.forEach(registry::register);
            try (HostModel<SmallNet> host = HostModel.of(new SmallNet(type));
                    AdapterPool pool = new AdapterPool(registry, host, PoolOptions.of(1 << 20))) {
                Tensor bare = host.base().forward(x);
                List<List<BatchPlan.Part>> rows = new ArrayList<>();
                for (String name : names) {
                    rows.add(
                            name.equals(LoraModel.BASE)
                                    ? List.of()
                                    : List.of(new BatchPlan.Part(pool.acquire(name, SOON), 1)));
                }
                Tensor actual = forward(host, new BatchPlan(), rows, x);
                assertThat(actual.allclose(expected, 1e-6, 1e-6, false)).isTrue();
                assertThat(actual.select(0, 1).allclose(bare.select(0, 1), 1e-6, 1e-6, false))
                        .isTrue();
                assertThat(actual.select(0, 0).allclose(bare.select(0, 0), 1e-2, 1e-2, false))
                        .isFalse();
            }
        }
    }

    private static Tensor forward(HostModel<SmallNet> host, BatchPlan plan, List<List<BatchPlan.Part>> rows, Tensor x) {
        try (LoraModel.Scope scope = host.rows(plan.of(rows))) {
            return host.base().forward(x);
        }
    }

    @ParameterizedTest
    @EnumSource(
            value = ScalarType.class,
            names = {"Float", "BFloat16"})
    void aRowHasTheSameBitsAloneAndInAnyBatch(ScalarType type) throws Exception {
        AdapterRegistry registry = new AdapterRegistry();
        adapters().forEach(registry::register);
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard();
                HostModel<SmallNet> host = HostModel.of(new SmallNet(type));
                AdapterPool pool = new AdapterPool(registry, host, PoolOptions.of(1 << 20))) {
            List<List<BatchPlan.Part>> kinds = List.of(
                    List.of(),
                    List.of(new BatchPlan.Part(pool.acquire("one", SOON), 1)),
                    List.of(new BatchPlan.Part(pool.acquire("patterns", SOON), 1)),
                    List.of(
                            new BatchPlan.Part(pool.acquire("half", SOON), 0.5),
                            new BatchPlan.Part(pool.acquire("one", SOON), -2)));
            int count = 37;
            Tensor x = torch.randn(new long[] {count, 10}).to(type);
            List<List<BatchPlan.Part>> rows = new ArrayList<>();
            for (int i = 0; i < count; i++) {
                rows.add(kinds.get(i * 7 % 4));
            }
            BatchPlan plan = new BatchPlan();
            Tensor all = forward(host, plan, rows, x);
            for (int i = 0; i < count; i++) {
                Tensor alone = forward(host, plan, List.of(rows.get(i)), x.narrow(0, i, 1));
                assertThat(alone.equal(all.narrow(0, i, 1))).as("row %d", i).isTrue();
            }
            int from = 11;
            Tensor some = forward(host, plan, rows.subList(from, from + 18), x.narrow(0, from, 18));
            assertThat(some.equal(all.narrow(0, from, 18))).isTrue();
        }
    }

    @Test
    void severalAdaptersAddTheirUpdatesTimesTheirFactors() throws Exception {
        AdapterRegistry registry = new AdapterRegistry();
        // On the last layer alone, so that sums of updates are sums of outputs.
        for (int i = 0; i < 2; i++) {
            registry.register(
                    "a" + i,
                    SmallNet.adapter(folder.resolve("a" + i), SmallNet.config(2, 3, "lin1"), i, ScalarType.Float));
        }
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard();
                HostModel<SmallNet> host = HostModel.of(new SmallNet(ScalarType.Float));
                AdapterPool pool = new AdapterPool(registry, host, PoolOptions.of(1 << 20))) {
            Tensor x = torch.randn(new long[] {1, 10});
            BatchPlan plan = new BatchPlan();
            BatchPlan.Part first = new BatchPlan.Part(pool.acquire("a0", SOON), 1);
            BatchPlan.Part second = new BatchPlan.Part(pool.acquire("a1", SOON), 1);
            Tensor base = forward(host, plan, List.of(List.of()), x);
            Tensor one = forward(host, plan, List.of(List.of(first)), x).sub(base);
            Tensor two = forward(host, plan, List.of(List.of(second)), x).sub(base);
            BatchPlan.Part more = new BatchPlan.Part(first.lease(), 0.25);
            BatchPlan.Part less = new BatchPlan.Part(second.lease(), -3);
            Tensor both = forward(host, plan, List.of(List.of(more, less)), x).sub(base);
            Tensor expected =
                    one.mul(new org.bytedeco.pytorch.Scalar(0.25)).add(two.mul(new org.bytedeco.pytorch.Scalar(-3.0)));
            assertThat(both.allclose(expected, 1e-4, 1e-5, false)).isTrue();
        }
    }

    @Test
    void whatCannotDifferByRowIsRefusedByName() throws Exception {
        Path path = SmallNet.adapter(
                folder.resolve("dora"),
                SmallNet.config(2, 4, "lin0").toBuilder().useDora(true).build(),
                1,
                ScalarType.Float);
        try (HostModel<SmallNet> host = HostModel.of(new SmallNet(ScalarType.Float))) {
            assertThatThrownBy(() -> host.read(path))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessageContaining("use_dora");
            Path other = SmallNet.adapter(folder.resolve("other"), SmallNet.config(2, 4, "lin0"), 1, ScalarType.Float);
            SmallNet.adapter(folder.resolve("wide"), SmallNet.config(3, 4, "lin0"), 1, ScalarType.Float);
            java.nio.file.Files.copy(
                    folder.resolve("wide/adapter_model.safetensors"),
                    other.resolve("adapter_model.safetensors"),
                    java.nio.file.StandardCopyOption.REPLACE_EXISTING);
            assertThatThrownBy(() -> host.inspect(other))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessageContaining("lin0.lora_A.weight is Float[3, 10], expected [2, 10]");
        }
    }

    @Test
    void theHashIsThatOfWhatIsComputedNotOfTheName() throws Exception {
        Path a = SmallNet.adapter(folder.resolve("a"), SmallNet.config(3, 4, "lin0"), 1, ScalarType.Float);
        Path same = SmallNet.adapter(folder.resolve("same"), SmallNet.config(3, 4, "lin0"), 1, ScalarType.Float);
        Path scale = SmallNet.adapter(folder.resolve("scale"), SmallNet.config(3, 5, "lin0"), 1, ScalarType.Float);
        Path values = SmallNet.adapter(folder.resolve("values"), SmallNet.config(3, 4, "lin0"), 2, ScalarType.Float);
        try (HostModel<SmallNet> host = HostModel.of(new SmallNet(ScalarType.Float))) {
            String hash = host.read(a).hash();
            assertThat(hash).matches("[0-9a-f]{64}").isEqualTo(host.read(same).hash());
            assertThat(host.read(scale).hash()).isNotEqualTo(hash);
            assertThat(host.read(values).hash()).isNotEqualTo(hash);
        }
    }

    @Test
    void closingTheHostPutsTheLayersBack() throws Exception {
        SmallNet net = new SmallNet(ScalarType.Float);
        org.bytedeco.pytorch.LinearImpl before = net.lin0;
        HostModel<SmallNet> host = HostModel.of(net);
        assertThat(host.layers()).containsExactly("lin0", "lin1");
        assertThat(net.lin0).isNotSameAs(before);
        host.close();
        assertThat(net.lin0).isSameAs(before);
    }
}
