package org.lora4j.combine;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.config.LoraConfig;
import org.lora4j.format.AdapterConfigJson;
import org.lora4j.format.AdapterFolder;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;

/** Adapters in folders: combined, resized, refused. */
class FolderCombinationTest {
    private static final Path GOLDEN = Path.of("src/test/resources/golden");
    private static final Path SOURCES = GOLDEN.resolve("combine/sources");
    private static final Path MLP = GOLDEN.resolve("toys/mlp.safetensors");

    @TempDir
    Path folder;

    private static List<Path> adapters(String setup) {
        return List.of(SOURCES.resolve(setup + "/a"), SOURCES.resolve(setup + "/b"));
    }

    /** Scale times B A of each layer of an adapter in a folder, in float64, in the caller's scope. */
    static Map<String, Tensor> updates(Path adapter) throws IOException {
        Map<String, Tensor> updates = new LinkedHashMap<>();
        try (AdapterSource source = AdapterSource.open(adapter)) {
            source.layers().keySet().forEach(path -> updates.put(path, Dense.update(source.member(path, 0, 1))));
        }
        return updates;
    }

    private static CombineReport combine(
            List<Path> adapters, List<Double> weights, CombineOptions options, Path base, Path out) throws IOException {
        return FolderCombination.combine(adapters, weights, options, base, out, LayerListener.NONE);
    }

    @ParameterizedTest
    @CsvSource({
        "mlp, LINEAR",
        "mlp, CAT",
        "mixed, EXACT",
        "hf, LINEAR",
        "conv, LINEAR",
        "emb, CAT",
        "emb, EXACT",
        "patterns, LINEAR",
        "rslora, LINEAR",
        "rslora, CAT",
        "bias, EXACT"
    })
    void theNewAdapterMakesTheSumOfTheUpdates(String setup, CombinationType type) throws IOException {
        Path out = folder.resolve("out");
        try (PointerScope scope = new PointerScope();
                NoGradGuard noGrad = new NoGradGuard()) {
            CombineReport report = combine(adapters(setup), List.of(1.1, -0.6), CombineOptions.of(type), null, out);
            Map<String, Tensor> a = updates(adapters(setup).get(0));
            Map<String, Tensor> b = updates(adapters(setup).get(1));
            Map<String, Tensor> made = updates(out);
            assertThat(made.keySet()).isEqualTo(a.keySet());
            made.forEach((path, update) -> {
                Tensor expected =
                        a.get(path).mul(new Scalar(1.1)).add(b.get(path).mul(new Scalar(-0.6)));
                assertThat(Dense.largestDifference(update, expected))
                        .isLessThan(2e-6 * expected.abs().max().item_double());
            });
            assertThat(report.layers()).hasSize(a.size()).allSatisfy(layer -> {
                assertThat(layer.energy()).isCloseTo(1, within(1e-9));
                assertThat(layer.scale()).isEqualTo(1);
            });
        }
        try (Stream<Path> files = Files.list(out)) {
            assertThat(files.map(f -> f.getFileName().toString()))
                    .containsExactlyInAnyOrder(AdapterConfigJson.FILE_NAME, AdapterFolder.SAFETENSORS);
        }
    }

    @Test
    void weightsByLayerAndDifferentTargets() throws IOException {
        CombineOptions options = CombineOptions.builder(CombinationType.LINEAR)
                .differentTargets(true)
                .layerWeights("lin1", List.of(9.0, 2.0))
                .build();
        try (PointerScope scope = new PointerScope();
                NoGradGuard noGrad = new NoGradGuard()) {
            combine(adapters("targets"), List.of(1.0, 1.0), options, null, folder.resolve("out"));
            Tensor made = updates(folder.resolve("out")).get("lin1");
            Tensor own = updates(adapters("targets").get(1)).get("lin1");
            assertThat(Dense.largestDifference(made, own.mul(new Scalar(2.0)))).isLessThan(1e-6);
        }
    }

    @Test
    void aBudgetGoesWhereTheEnergyIs() throws IOException {
        List<Path> adapters = adapters("patterns");
        CombineOptions options = CombineOptions.builder(CombinationType.LINEAR)
                .rank(new RankRule.Total(7))
                .build();
        CombineReport report = combine(adapters, List.of(1.0, 1.0), options, null, folder.resolve("out"));
        assertThat(report.ranks()).isEqualTo(7);
        List<Double> kept = report.layers().stream()
                .flatMap(layer -> layer.values().subList(0, layer.rank()).stream())
                .toList();
        List<Double> left = report.layers().stream()
                .flatMap(layer ->
                        layer.values().subList(layer.rank(), layer.values().size()).stream())
                .toList();
        double smallest = kept.stream().mapToDouble(Double::doubleValue).min().orElseThrow();
        assertThat(left).allSatisfy(value -> assertThat(value).isLessThanOrEqualTo(smallest));
        assertThat(AdapterConfigJson.read(folder.resolve("out").resolve(AdapterConfigJson.FILE_NAME))
                        .rankPattern())
                .isNotEmpty();
    }

    @Test
    void wholeModulesAddUpAsChangesOfTheBase() throws IOException {
        for (String name : List.of("a", "b")) {
            Path own = Files.createDirectories(folder.resolve(name));
            try (PointerScope scope = new PointerScope();
                    MappedTensors source = TensorFiles.open(
                            AdapterFolder.tensors(SOURCES.resolve("mlp").resolve(name)))) {
                Map<String, Tensor> tensors = new LinkedHashMap<>();
                source.names().forEach(key -> tensors.put(key, source.tensor(key)));
                long seed = name.charAt(0);
                tensors.put("base_model.model.lin1.weight", Dense.normal(seed, 2, 20));
                tensors.put("base_model.model.lin1.bias", Dense.normal(seed + 9, 2));
                TensorFiles.write(own.resolve(AdapterFolder.SAFETENSORS), tensors, TensorFiles.METADATA);
            }
            LoraConfig config =
                    AdapterConfigJson.read(SOURCES.resolve("mlp").resolve(name).resolve(AdapterConfigJson.FILE_NAME))
                            .toBuilder()
                            .modulesToSave("lin1")
                            .build();
            AdapterConfigJson.write(own.resolve(AdapterConfigJson.FILE_NAME), config);
        }
        List<Path> both = List.of(folder.resolve("a"), folder.resolve("b"));
        CombineOptions linear = CombineOptions.of(CombinationType.LINEAR);
        assertThatThrownBy(() -> combine(both, List.of(0.5, 0.2), linear, null, folder.resolve("out")))
                .hasMessageContaining("lin1")
                .hasMessageContaining("give the base");
        assertThat(folder.resolve("out")).doesNotExist();
        combine(both, List.of(0.5, 0.2), linear, MLP, folder.resolve("out"));
        combine(both, List.of(0.75, 0.25), linear, null, folder.resolve("one"));
        try (PointerScope scope = new PointerScope();
                MappedTensors base = TensorFiles.open(MLP);
                MappedTensors made = TensorFiles.open(AdapterFolder.tensors(folder.resolve("out")));
                MappedTensors one = TensorFiles.open(AdapterFolder.tensors(folder.resolve("one")))) {
            Tensor a = Dense.normal('a', 2, 20);
            Tensor b = Dense.normal('b', 2, 20);
            Tensor expected = base.tensor("lin1.weight")
                    .mul(new Scalar(0.3))
                    .add(a.mul(new Scalar(0.5)))
                    .add(b.mul(new Scalar(0.2)));
            assertThat(Dense.largestDifference(made.tensor("base_model.model.lin1.weight"), expected))
                    .isLessThan(1e-6);
            Tensor mean = a.mul(new Scalar(0.75)).add(b.mul(new Scalar(0.25)));
            assertThat(Dense.largestDifference(one.tensor("base_model.model.lin1.weight"), mean))
                    .isLessThan(1e-6);
        }
    }

    @Test
    void doraNeedsTheBase() throws IOException {
        CombineOptions linear = CombineOptions.of(CombinationType.LINEAR);
        assertThatThrownBy(() -> combine(adapters("dora"), List.of(0.5, 0.5), linear, null, folder.resolve("out")))
                .hasMessageContaining("DoRA")
                .hasMessageContaining("give the base");
        assertThat(folder.resolve("out")).doesNotExist();
        combine(adapters("dora"), List.of(0.5, 0.5), linear, MLP, folder.resolve("out"));
        assertThat(AdapterConfigJson.read(folder.resolve("out").resolve(AdapterConfigJson.FILE_NAME))
                        .useDora())
                .isTrue();
    }

    @Test
    void wrongRequestsChangeNothing() {
        CombineOptions linear = CombineOptions.of(CombinationType.LINEAR);
        Path out = folder.resolve("out");
        List<Path> mlp = adapters("mlp");
        assertThatThrownBy(() -> combine(List.of(), List.of(), linear, null, out))
                .hasMessageContaining("0 adapters and 0 weights");
        assertThatThrownBy(() -> combine(mlp, List.of(1.0), linear, null, out))
                .hasMessageContaining("2 adapters and 1 weights");
        assertThatThrownBy(() -> combine(List.of(mlp.get(0), mlp.get(0)), List.of(1.0, 1.0), linear, null, out))
                .hasMessageContaining("named twice");
        assertThatThrownBy(() -> combine(mlp, List.of(1.0, Double.NaN), linear, null, out))
                .hasMessageContaining("weight NaN");
        assertThatThrownBy(() -> combine(adapters("targets"), List.of(1.0, 1.0), linear, null, out))
                .hasMessageContaining("different targets")
                .hasMessageContaining("lacks lin1");
        assertThatThrownBy(() -> combine(
                        List.of(mlp.get(0), SOURCES.resolve("conv/a")),
                        List.of(1.0, 1.0),
                        CombineOptions.builder(CombinationType.CAT)
                                .differentTargets(true)
                                .layerWeights("lin7", List.of(1.0, 2.0))
                                .build(),
                        null,
                        out))
                .hasMessageContaining("matches the path of no layer");
        assertThatThrownBy(() ->
                        combine(List.of(mlp.get(0), folder.resolve("none")), List.of(1.0, 1.0), linear, null, out))
                .isInstanceOf(IOException.class)
                .hasMessageContaining("none");
        assertThatThrownBy(() -> combine(mlp, List.of(1.0, 1.0), linear, null, mlp.get(0)))
                .hasMessageContaining("write to another folder");
        assertThat(out).doesNotExist();
    }

    @ParameterizedTest
    @CsvSource({
        "ties, , density = null",
        "ties, 1.5, at most 1",
        "dare_linear, -0.1, above 0",
        "linear, 0.5, has no meaning for linear",
        "della, 1, epsilon",
        "breadcrumbs, 1, gamma"
    })
    void wrongDensitiesAreNamed(String type, Double density, String message) {
        CombineOptions.Builder builder = CombineOptions.builder(CombinationType.of(type));
        if (density != null) {
            builder.density(density);
        }
        assertThatThrownBy(builder::build).hasMessageContaining(message);
    }

    @Test
    void otherWrongOptionsAreNamed() {
        assertThatThrownBy(() -> CombinationType.of("tiez"))
                .hasMessageContaining("tiez")
                .hasMessageContaining("magnitude_prune_svd");
        assertThatThrownBy(() ->
                        CombineOptions.builder(CombinationType.CAT).rank(3).build())
                .hasMessageContaining("cannot be chosen for cat");
        assertThatThrownBy(() ->
                        CombineOptions.builder(CombinationType.SVD).rank(0).build())
                .hasMessageContaining("rank is 0");
        assertThatThrownBy(() ->
                        CombineOptions.builder(CombinationType.SVD).clamp(0).build())
                .hasMessageContaining("clamp");
        assertThatThrownBy(() -> new RankRule.Energy(1.2)).hasMessageContaining("energy is 1.2");
    }

    @ParameterizedTest
    @ValueSource(ints = {1, 2, 3, 4, 6})
    void resizingIsTheBestApproximation(int rank) throws IOException {
        Path source = SOURCES.resolve("rslora/a");
        CombineReport report =
                FolderResize.resize(source, new RankRule.Fixed(rank), folder.resolve("out"), LayerListener.NONE);
        try (PointerScope scope = new PointerScope();
                NoGradGuard noGrad = new NoGradGuard()) {
            Tensor whole = updates(source).get("lin0");
            Tensor made = updates(folder.resolve("out")).get("lin0");
            double[] values = Components.Svd.of(whole).s();
            double left = 0;
            for (int i = Math.min(rank, 4); i < values.length; i++) {
                left += values[i] * values[i];
            }
            assertThat(made.sub(whole).norm().item_double())
                    .isCloseTo(Math.sqrt(left), within(1e-6 * whole.norm().item_double()));
            LayerReport layer = report.layers().get(0);
            assertThat(1 - layer.energy()).isCloseTo(left / whole.square().sum().item_double(), within(1e-9));
            assertThat(layer.rank()).isEqualTo(Math.min(rank, 8));
        }
        LoraConfig config = AdapterConfigJson.read(folder.resolve("out").resolve(AdapterConfigJson.FILE_NAME));
        assertThat(config.useRslora()).isFalse();
        assertThat(config.r()).isEqualTo(report.layers().get(0).rank());
    }

    @ParameterizedTest
    @EnumSource(names = {"Float", "BFloat16"})
    void resizingKeepsTypesBiasesAndMagnitudes(ScalarType type) throws IOException {
        for (String setup : List.of("bias", "dora")) {
            Path source = Files.createDirectories(folder.resolve(setup));
            Path golden = SOURCES.resolve(setup + "/a");
            try (PointerScope scope = new PointerScope();
                    MappedTensors tensors = TensorFiles.open(AdapterFolder.tensors(golden))) {
                Map<String, Tensor> typed = new LinkedHashMap<>();
                tensors.names()
                        .forEach(key -> typed.put(key, tensors.tensor(key).to(type)));
                TensorFiles.write(source.resolve(AdapterFolder.SAFETENSORS), typed, TensorFiles.METADATA);
            }
            Files.copy(golden.resolve(AdapterConfigJson.FILE_NAME), source.resolve(AdapterConfigJson.FILE_NAME));
            Path out = folder.resolve(setup + "-out");
            FolderResize.resize(source, new RankRule.Energy(0.8), out, LayerListener.NONE);
            try (PointerScope scope = new PointerScope();
                    AdapterSource before = AdapterSource.open(source);
                    AdapterSource after = AdapterSource.open(out)) {
                LayerInput.Member old = before.member("lin0", 0, 1);
                LayerInput.Member made = after.member("lin0", 0, 1);
                assertThat(made.rank()).isLessThan(old.rank());
                assertThat(made.a().scalar_type().intern()).isEqualTo(type.intern());
                if (old.magnitude() != null) {
                    assertThat(made.magnitude().equal(old.magnitude())).isTrue();
                } else {
                    Tensor expected = old.bias().mul(new Scalar(old.scale()));
                    assertThat(Dense.largestDifference(made.bias(), expected)).isLessThan(1e-2);
                }
            }
        }
    }
}
