package org.lora4j.layer;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.config.EvaConfig;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.ModuleSelector;
import org.lora4j.ops.Tensors;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

class EvaTest {
    private static final EvaConfig DEFAULTS = EvaConfig.of(LoraConfig.builder().build());

    static Stream<InitCase> cases() {
        return InitCase.of("eva");
    }

    @ParameterizedTest
    @MethodSource("cases")
    void findsThePeftsComponentsAndRanks(InitCase golden) {
        LoraConfig config = config(golden.json().get("config"));
        Map<String, Long> widths = new LinkedHashMap<>();
        JsonNode layers = golden.json().get("layers");
        layers.forEach(layer -> widths.put(
                layer.get("name").asString(), layer.get("shape").get(1).asLong()));
        try (EvaSearch search = new EvaSearch(config, widths)) {
            int batches = golden.json().get("batches").asInt();
            int batch = 0;
            boolean survey = true;
            int steps = 0;
            boolean done = false;
            while (!done) {
                assertThat(steps++).as("batches until converged").isLessThan(100);
                for (JsonNode layer : layers) {
                    String path = layer.get("name").asString();
                    if (search.wants(path)) {
                        Tensor input = golden.tensor(
                                "batch" + batch + "." + layer.get("input").asString());
                        search.add(
                                path,
                                EvaSearch.rows(
                                        input,
                                        mask(golden, batch, "attention_mask"),
                                        mask(golden, batch, "labels"),
                                        EvaConfig.of(config)));
                    }
                }
                done = search.endBatch();
                batch = survey ? 0 : (batch + 1) % batches;
                survey = false;
            }
            assertThat(search.missing()).isEmpty();
            for (JsonNode layer : layers) {
                String path = layer.get("name").asString();
                int rank = golden.json().get("ranks").get(path).asInt();
                assertThat(search.ranks()).containsEntry(path, rank);
                if (rank > 0) {
                    JsonNode shape = layer.get("shape");
                    Start start = search.start(
                            path,
                            torch.zeros(shape.get(0).asLong(), shape.get(1).asLong()));
                    assertThat(InitCase.difference(start.a(), golden.tensor(path + ".a")))
                            .isLessThan(1e-4);
                    assertThat(Tensors.shape(start.b()))
                            .containsExactly(shape.get(0).asLong(), rank);
                    assertThat(InitCase.largest(start.b())).isZero();
                    assertThat(start.residual()).isNull();
                }
            }
            check(golden, EvaRanks.config(config, search.ranks(), List.of()));
        }
    }

    private static void check(InitCase golden, LoraConfig made) {
        assertThat(made.targetModules()).isInstanceOf(ModuleSelector.Names.class);
        assertThat(((ModuleSelector.Names) made.targetModules()).names())
                .containsExactlyInAnyOrderElementsOf(golden.json()
                        .get("target_modules")
                        .valueStream()
                        .map(JsonNode::asString)
                        .toList());
        Map<String, Integer> ranks = new LinkedHashMap<>();
        golden.json()
                .get("rank_pattern")
                .properties()
                .forEach(e -> ranks.put(e.getKey(), e.getValue().asInt()));
        Map<String, Double> alphas = new LinkedHashMap<>();
        golden.json()
                .get("alpha_pattern")
                .properties()
                .forEach(e -> alphas.put(e.getKey(), e.getValue().asDouble()));
        assertThat(made.rankPattern()).isEqualTo(ranks);
        assertThat(made.alphaPattern()).isEqualTo(alphas);
    }

    private static Tensor mask(InitCase golden, int batch, String part) {
        String name = "batch" + batch + "." + part;
        return golden.tensors().names().contains(golden.name() + "." + name) ? golden.tensor(name) : null;
    }

    private static LoraConfig config(JsonNode json) {
        Map<String, Integer> ranks = new LinkedHashMap<>();
        json.path("rank_pattern")
                .properties()
                .forEach(e -> ranks.put(e.getKey(), e.getValue().asInt()));
        Map<String, Double> alphas = new LinkedHashMap<>();
        json.path("alpha_pattern")
                .properties()
                .forEach(e -> alphas.put(e.getKey(), e.getValue().asDouble()));
        return LoraConfig.builder()
                .r(json.get("r").asInt())
                .loraAlpha(json.get("lora_alpha").asDouble())
                .targetModules(json.get("target_modules")
                        .valueStream()
                        .map(JsonNode::asString)
                        .toList())
                .rankPattern(ranks)
                .alphaPattern(alphas)
                .initLoraWeights("eva")
                .otherField("eva_config", new JsonMapper().convertValue(json.get("eva_config"), Map.class))
                .build();
    }

    /** With every row in one batch, and so few columns that the random basis is whole, this is plain PCA. */
    @ParameterizedTest
    @ValueSource(ints = {1, 3, 5})
    void componentsOfOneBatchAreThePrincipalOnes(int count) {
        torch.manual_seed(6);
        Tensor rows = torch.randn(40, 5).mul(torch.tensor(5f, 3f, 2f, 1f, 0.3f)).add(new Scalar(2.0));
        try (IncrementalPca pca = new IncrementalPca(count, 0.9)) {
            pca.add(rows);
            Tensor centred = rows.sub(rows.mean(0));
            Svd expected = Svd.of(centred).part(0, count).withPositivePeaks();
            assertThat(InitCase.difference(pca.components(count, false), expected.vh()))
                    .isLessThan(1e-3);
            double variance = centred.square().sum().item_double();
            for (int i = 0; i < count; i++) {
                double part = expected.s().select(0, i).square().item_double() / variance;
                assertThat((double) pca.explained()[i]).isCloseTo(part, within(1e-3));
            }
            assertThat(pca.converged(count)).as("after one batch").isFalse();
            pca.add(rows);
            assertThat(pca.converged(count)).as("after the same batch again").isTrue();
        }
    }

    @Test
    void batchesGiveTheMeanAndVarianceOfAll() {
        torch.manual_seed(7);
        Tensor rows = torch.randn(60, 3).mul(torch.tensor(4f, 2f, 1f)).add(torch.tensor(1f, -5f, 9f));
        try (IncrementalPca pca = new IncrementalPca(3, 0.9)) {
            pca.add(rows.narrow(0, 0, 11));
            pca.add(rows.narrow(0, 11, 2));
            pca.add(rows.narrow(0, 11, 30));
            pca.add(rows.narrow(0, 41, 19));
            Tensor centred = rows.sub(rows.mean(0));
            Svd expected = Svd.of(centred).withPositivePeaks();
            assertThat(InitCase.difference(pca.components(3, false), expected.vh()))
                    .as("all three components; the batch of two rows is passed over")
                    .isLessThan(1e-3);
            float sum = pca.explained()[0] + pca.explained()[1] + pca.explained()[2];
            assertThat(sum).isCloseTo(1f, within(1e-4f));
        }
    }

    @Test
    void rowsWithoutMasksAreAllRows() {
        Tensor input = torch.randn(2, 3, 4);
        assertThat(InitCase.difference(EvaSearch.rows(input, null, null, DEFAULTS), input.view(6, 4)))
                .isZero();
        Tensor labels = torch.full(new long[] {2, 3}, new Scalar(-100), new TensorOptions(torch.ScalarType.Long));
        labels.select(0, 1).select(0, 2).fill_(new Scalar(4));
        assertThat(InitCase.difference(
                        EvaSearch.rows(input, null, labels, DEFAULTS),
                        input.view(6, 4).narrow(0, 5, 1)))
                .isZero();
        assertThatThrownBy(() -> EvaSearch.rows(input, torch.ones(2, 4), null, DEFAULTS))
                .hasMessageContaining("Bool[2, 4]")
                .hasMessageContaining("Float[2, 3, 4]");
    }

    /** An end of another path must neither target it nor lend it a rank. */
    @Test
    void pathsThatEndOtherPathsStayApart() {
        LoraConfig config = LoraConfig.builder()
                .r(2)
                .loraAlpha(6)
                .targetModules("fc", "other")
                .layersToTransform(0)
                .build();
        Map<String, Integer> ranks = new LinkedHashMap<>();
        ranks.put("fc", 4);
        ranks.put("block.fc", 2);
        LoraConfig both = EvaRanks.config(config, ranks, List.of("other"));
        assertThat(both.rankFor("fc")).isEqualTo(4);
        assertThat(both.rankFor("block.fc")).isEqualTo(2);
        assertThat(both.scale("fc")).isEqualTo(3);
        assertThat(both.scale("block.fc")).isEqualTo(3);
        assertThat(both.rankFor("other")).isEqualTo(2);
        assertThat(both.targetModules()).isEqualTo(ModuleSelector.names("fc", "block.fc", "other"));
        ranks.put("block.fc", 0);
        assertThat(EvaRanks.config(config, ranks, List.of("other")).targetModules())
                .isEqualTo(ModuleSelector.regex("fc|other"));
    }

    @Test
    void keepsTheScaleWithRslora() {
        LoraConfig config = LoraConfig.builder()
                .r(3)
                .loraAlpha(6)
                .useRslora(true)
                .targetModules("a", "b")
                .build();
        LoraConfig made = EvaRanks.config(config, Map.of("a", 5, "b", 1), List.of());
        assertThat(made.scale("a")).isCloseTo(config.scale("a"), within(1e-12));
        assertThat(made.scale("b")).isCloseTo(config.scale("b"), within(1e-12));
    }

    @Test
    void saysWhatIsMissing() {
        LoraConfig config = LoraConfig.builder().r(2).targetModules("a", "b").build();
        try (EvaSearch search = new EvaSearch(config, new LinkedHashMap<>(Map.of("a", 4L, "b", 4L)))) {
            search.add("a", torch.randn(5, 4));
            assertThatThrownBy(search::endBatch).hasMessageContaining("[b]");
            search.add("b", torch.randn(5, 4));
            assertThat(search.endBatch()).isFalse();
            assertThatThrownBy(() -> search.start("a", torch.zeros(3, 4))).hasMessageContaining("layer 'a'");
            search.add("a", torch.randn(1, 4));
            assertThat(search.endBatch()).as("too few rows").isFalse();
            assertThat(search.missing()).containsExactlyInAnyOrder("a", "b");
        }
        assertThatThrownBy(() -> new EvaSearch(config, Map.of("a", 1L)))
                .hasMessageContaining("layer 'a'")
                .hasMessageContaining("the rank is 2 and the width 1");
    }

    /** More components than columns are asked for: PEFT fails, this takes all there are. */
    @Test
    void neverAsksForMoreComponentsThanColumns() {
        torch.manual_seed(8);
        LoraConfig config = LoraConfig.builder()
                .r(2)
                .targetModules("a")
                .otherField("eva_config", Map.of("rho", 5))
                .build();
        try (EvaSearch search = new EvaSearch(config, Map.of("a", 3L))) {
            Tensor rows = torch.randn(20, 3).mul(torch.tensor(4f, 2f, 1f));
            boolean done = false;
            for (int i = 0; i < 6 && !done; i++) {
                search.add("a", rows);
                done = search.endBatch();
            }
            assertThat(done).isTrue();
            assertThat(search.ranks()).containsEntry("a", 2);
        }
    }
}
