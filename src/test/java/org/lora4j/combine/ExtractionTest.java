package org.lora4j.combine;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.lora4j.config.LoraConfig;
import org.lora4j.format.AdapterConfigJson;
import org.lora4j.format.AdapterFolder;
import org.lora4j.format.DType;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;

/** Adapters from what changed between two checkpoints. */
class ExtractionTest {
    @TempDir
    Path folder;

    private PointerScope scope;
    private NoGradGuard guard;
    private final Map<String, Tensor> before = new LinkedHashMap<>();
    private final Map<String, Tensor> after = new LinkedHashMap<>();

    @BeforeEach
    void checkpoint() {
        scope = new PointerScope();
        guard = new NoGradGuard();
        put("model.embed_tokens.weight", Dense.normal(1, 40, 24), 0);
        for (int layer = 0; layer < 3; layer++) {
            put("model.layers." + layer + ".q_proj.weight", Dense.normal(10 + layer, 24, 24), 0.1 * (layer + 1));
            put("model.layers." + layer + ".q_proj.bias", Dense.normal(20 + layer, 24), 0);
            put("model.layers." + layer + ".up_proj.weight", Dense.normal(30 + layer, 51, 24), 0.2);
            put("model.layers." + layer + ".norm.weight", Dense.normal(40 + layer, 24), 0);
        }
        put("lm_head.weight", Dense.normal(50, 40, 24), 0);
    }

    @AfterEach
    void close() {
        guard.close();
        scope.close();
    }

    /** A tensor of both checkpoints, with a dense change of a size. */
    private void put(String name, Tensor value, double change) {
        before.put(name, value);
        Tensor noise = torch.randn(org.lora4j.ops.Tensors.shape(value)).mul(new Scalar(change));
        after.put(name, change == 0 ? value : value.add(noise));
    }

    private CombineReport extract(ExtractOptions options) throws IOException {
        return extract(options, "out", LayerListener.NONE);
    }

    private CombineReport extract(ExtractOptions options, String out, LayerListener listener) throws IOException {
        if (!Files.exists(folder.resolve("base"))) {
            Files.createDirectories(folder.resolve("base"));
            Files.createDirectories(folder.resolve("tuned"));
            TensorFiles.writeCheckpoint(folder.resolve("base"), before, TensorFiles.METADATA, 1 << 20);
            TensorFiles.writeCheckpoint(folder.resolve("tuned"), after, TensorFiles.METADATA, 12_000);
        }
        return Extraction.extract(
                folder.resolve("base"), folder.resolve("tuned"), options, folder.resolve(out), listener);
    }

    private LoraConfig config() throws IOException {
        return AdapterConfigJson.read(folder.resolve("out").resolve(AdapterConfigJson.FILE_NAME));
    }

    private Tensor change(String path) {
        return after.get(path + ".weight")
                .to(ScalarType.Double)
                .sub(before.get(path + ".weight").to(ScalarType.Double));
    }

    private static double errorOf(double[] values, int rank) {
        double left = 0;
        for (int i = rank; i < values.length; i++) {
            left += values[i] * values[i];
        }
        return Math.sqrt(left);
    }

    @ParameterizedTest
    @CsvSource({"1, F32", "5, F32", "24, F32", "30, F32", "5, BF16"})
    void eachLayerIsTheBestOfItsRankAndSaysItsError(int rank, DType dtype) throws IOException {
        ExtractOptions options =
                new ExtractOptions(new RankRule.Fixed(rank), null, ExtractOptions.Others.SAVE, dtype, 3);
        CombineReport report = extract(options);
        assertThat(report.layers()).hasSize(6);
        Map<String, Tensor> made = FolderCombinationTest.updates(folder.resolve("out"));
        for (LayerReport layer : report.layers()) {
            Tensor change = change(layer.path());
            double[] values = Components.Svd.of(change).s();
            double norm = change.norm().item_double();
            double error = change.sub(made.get(layer.path())).norm().item_double();
            double rounding = dtype == DType.F32 ? 2e-6 : 1e-2;
            assertThat(error).isCloseTo(errorOf(values, rank), within(rounding * norm));
            assertThat(Math.sqrt(1 - layer.energy()) * norm).isCloseTo(errorOf(values, rank), within(2e-6 * norm));
            assertThat(layer.rank()).isEqualTo(Math.min(rank, 24));
        }
        LoraConfig config = config();
        assertThat(config.targetModules().toString()).isIn("[q_proj, up_proj]", "[up_proj, q_proj]");
        assertThat(config.loraBias()).isFalse();
        assertThat(config.modulesToSave()).isEmpty();
        assertThat(folder.resolve("out").resolve(".parts")).doesNotExist();
    }

    @Test
    void energyGivesTheLowestRankThatKeepsIt() throws IOException {
        CombineReport report = extract(ExtractOptions.of(new RankRule.Energy(0.7)));
        for (LayerReport layer : report.layers()) {
            double[] values = Components.Svd.of(change(layer.path())).s();
            double all = errorOf(values, 0);
            assertThat(layer.energy()).isGreaterThanOrEqualTo(0.7);
            double less = 1 - Math.pow(errorOf(values, layer.rank() - 1) / all, 2);
            assertThat(less).isLessThan(0.7);
        }
    }

    @Test
    void aTotalGoesToTheLargestValuesOfAllLayers() throws IOException {
        CombineReport report = extract(ExtractOptions.of(new RankRule.Total(30)));
        assertThat(report.ranks()).isEqualTo(30);
        Map<String, Integer> ranks = new LinkedHashMap<>();
        report.layers().forEach(layer -> ranks.put(layer.path(), layer.rank()));
        assertThat(ranks.get("model.layers.2.q_proj")).isGreaterThan(ranks.get("model.layers.0.q_proj"));
        double all = 0;
        List<Double> values = new ArrayList<>();
        for (String path : ranks.keySet()) {
            double[] own = Components.Svd.of(change(path)).s();
            all += Math.pow(errorOf(own, 0), 2);
            // Every layer has rank 1 at least.
            for (int i = 1; i < own.length; i++) {
                values.add(own[i] * own[i]);
            }
        }
        values.sort(null);
        double best = values.subList(0, values.size() - 24).stream()
                .mapToDouble(Double::doubleValue)
                .sum();
        assertThat(1 - report.energy()).isCloseTo(best / all, within(1e-5));
    }

    @Test
    void whatElseChangedIsKeptOrRefused() throws IOException {
        after.put("model.layers.1.norm.weight", Dense.normal(99, 24));
        after.put("model.layers.0.q_proj.bias", Dense.normal(98, 24));
        after.put(
                "model.embed_tokens.weight",
                torch.cat(new TensorVector(before.get("model.embed_tokens.weight"), Dense.normal(97, 3, 24)), 0));
        assertThatThrownBy(() -> extract(
                        new ExtractOptions(new RankRule.Fixed(4), null, ExtractOptions.Others.ERROR, DType.F32, 0)))
                .hasMessageContaining("model.layers.1.norm.weight")
                .hasMessageContaining("model.layers.0.q_proj.bias")
                .hasMessageContaining("model.embed_tokens.weight (40 to 43 rows)");
        assertThat(folder.resolve("out")).doesNotExist();
        CombineReport report = extract(ExtractOptions.of(new RankRule.Fixed(4)));
        assertThat(report.notes()).singleElement().asString().contains("resize the model's embeddings");
        assertThat(config().modulesToSave()).containsExactly("model.embed_tokens", "model.layers.1.norm");
        assertThat(config().loraBias()).isTrue();
        try (MappedTensors made = TensorFiles.open(AdapterFolder.tensors(folder.resolve("out")))) {
            String prefix = "base_model.model.";
            for (String name : List.of("model.layers.1.norm.weight", "model.embed_tokens.weight")) {
                assertThat(made.tensor(prefix + name).equal(after.get(name))).isTrue();
            }
            Tensor bias = after.get("model.layers.0.q_proj.bias").sub(before.get("model.layers.0.q_proj.bias"));
            assertThat(Dense.largestDifference(made.tensor(prefix + "model.layers.0.q_proj.lora_B.bias"), bias))
                    .isLessThan(1e-6);
            assertThat(Dense.array(made.tensor(prefix + "model.layers.2.up_proj.lora_B.bias")))
                    .containsOnly(0);
        }
    }

    @Test
    void unchangedLayersGetNoAdapter() throws IOException {
        after.put("model.layers.1.q_proj.weight", before.get("model.layers.1.q_proj.weight"));
        CombineReport report = extract(ExtractOptions.of(new RankRule.Fixed(2)));
        assertThat(report.layers()).extracting(LayerReport::path).doesNotContain("model.layers.1.q_proj");
        assertThat(config().targetModules().toString()).contains("model.layers.0.q_proj");
    }

    @Test
    void transposedLayersAreTurned() throws IOException {
        Files.createDirectories(folder.resolve("tuned"));
        Files.createDirectories(folder.resolve("base"));
        TensorFiles.writeCheckpoint(folder.resolve("base"), before, TensorFiles.METADATA, 1 << 20);
        TensorFiles.writeCheckpoint(folder.resolve("tuned"), after, TensorFiles.METADATA, 1 << 20);
        Files.writeString(
                folder.resolve("tuned/config.json"),
                "{\"model_type\": \"gpt2\", \"architectures\": [\"GPT2LMHeadModel\"]}");
        extract(ExtractOptions.of(new RankRule.Fixed(24)));
        assertThat(config().fanInFanOut()).isTrue();
        Map<String, Tensor> made = FolderCombinationTest.updates(folder.resolve("out"));
        for (String path : List.of("model.layers.0.q_proj", "model.layers.2.up_proj")) {
            assertThat(Dense.largestDifference(made.get(path), change(path).t()))
                    .isLessThan(1e-5);
        }
    }

    @Test
    void aStoppedRunGoesOn() throws IOException {
        ExtractOptions options = ExtractOptions.of(new RankRule.Fixed(4));
        assertThatThrownBy(() -> extract(options, "out", (done, total, path) -> {
                    if (done == 4) {
                        throw new IllegalStateException("stopped");
                    }
                }))
                .hasMessage("stopped");
        assertThat(folder.resolve("out").resolve(AdapterFolder.SAFETENSORS)).doesNotExist();
        assertThatThrownBy(() -> extract(ExtractOptions.of(new RankRule.Fixed(5))))
                .hasMessageContaining("parts of another extraction");
        CombineReport report = extract(options);
        assertThat(report.notes()).containsExactly("4 layers were finished by a run before this one");
        extract(options, "other", LayerListener.NONE);
        assertThat(Files.mismatch(
                        AdapterFolder.tensors(folder.resolve("out")), AdapterFolder.tensors(folder.resolve("other"))))
                .isEqualTo(-1);
    }

    @Test
    void whatDoesNotFitIsListedBeforeAnyWork() throws IOException {
        after.remove("model.layers.0.norm.weight");
        after.put("model.layers.1.up_proj.weight", Dense.normal(1, 52, 24));
        assertThatThrownBy(() -> extract(ExtractOptions.of(new RankRule.Fixed(4))))
                .hasMessageContaining("lacks model.layers.0.norm.weight")
                .hasMessageContaining("model.layers.1.up_proj.weight is [51, 24]");
        assertThat(folder.resolve("out")).doesNotExist();
        assertThatThrownBy(() -> ExtractOptions.of(new RankRule.Largest())).hasMessageContaining("a number");
    }

    @Test
    void valuesThatAreNotFiniteAreNamed() throws IOException {
        Tensor broken = after.get("model.layers.1.up_proj.weight").clone();
        broken.select(0, 3).fill_(new Scalar(Double.NaN));
        after.put("model.layers.1.up_proj.weight", broken);
        assertThatThrownBy(() -> extract(ExtractOptions.of(new RankRule.Fixed(4))))
                .hasMessageContaining("model.layers.1.up_proj.weight")
                .hasMessageContaining("not finite");
        assertThat(folder.resolve("out").resolve(AdapterFolder.SAFETENSORS)).doesNotExist();
    }

    @Test
    void largeLayersAreNearlyTheBestApproximation() {
        // Singular values that fall slowly are the hard case.
        Tensor u = Components.Qr.of(Dense.normal(1, 900, 900).to(ScalarType.Double))
                .q();
        Tensor v = Components.Qr.of(Dense.normal(2, 1100, 900).to(ScalarType.Double))
                .q();
        double[] values = new double[900];
        for (int i = 0; i < values.length; i++) {
            values[i] = 1 / Math.sqrt(i + 1.0);
        }
        Tensor matrix = u.mul(Tensor.create(values)).matmul(v.t()).to(ScalarType.Float);
        for (int rank : new int[] {1, 16, 64}) {
            Components found = RandomizedSvd.of(Tiles.of(matrix), rank, 5);
            double measured = matrix.to(ScalarType.Double)
                    .sub(found.factors(rank).b().matmul(found.factors(rank).a()).to(ScalarType.Double))
                    .norm()
                    .item_double();
            double best = errorOf(values, rank);
            assertThat(measured).isBetween(best * (1 - 1e-5), best * 1.005);
            double certificate = Math.sqrt(found.total() - found.energy(rank));
            assertThat(certificate).isCloseTo(measured, within(1e-4 * measured));
        }
    }
}
