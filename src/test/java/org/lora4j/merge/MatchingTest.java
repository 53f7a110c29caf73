package org.lora4j.merge;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.catchThrowableOfType;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.LoraConfigBuilder;
import org.lora4j.format.AdapterConfigJson;
import org.lora4j.format.DType;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;
import org.lora4j.ops.Tensors;

/** Which tensors of a checkpoint an adapter's tensors mean, and what is refused. */
class MatchingTest {
    private static final String PREFIX = "base_model.model.";

    @TempDir(factory = MemoryTempDir.class)
    Path folder;

    private final Map<String, Tensor> base = new LinkedHashMap<>();
    private final Map<String, Tensor> adapter = new LinkedHashMap<>();

    private Tensor put(Map<String, Tensor> map, String name, long... shape) {
        Tensor tensor = Tensors.keep(torch.randn(shape).mul(new Scalar(0.1)));
        map.put(name, tensor);
        return tensor;
    }

    private Path checkpoint(String config) throws IOException {
        Path path = Files.createDirectories(folder.resolve("base"));
        TensorFiles.write(path.resolve("model.safetensors"), base, TensorFiles.METADATA);
        Files.writeString(path.resolve("config.json"), config);
        return path;
    }

    private MergeOptions options(String json, LoraConfigBuilder config) throws IOException {
        Path path = Files.createDirectories(folder.resolve("adapter"));
        TensorFiles.write(path.resolve("adapter_model.safetensors"), adapter, TensorFiles.METADATA);
        AdapterConfigJson.write(path.resolve("adapter_config.json"), config.build());
        return MergeOptions.of(checkpoint(json), new WeightedAdapter(path, 1));
    }

    private MappedTensors merge(MergeOptions options) throws IOException {
        CheckpointMerge.merge(options, folder.resolve("out"), false, MergeProgress.NONE);
        return TensorFiles.open(folder.resolve("out"));
    }

    private static Tensor sum(Tensor w, double scale, Tensor b, Tensor a) {
        return w.add(b.matmul(a), new Scalar(scale));
    }

    private static void assertClose(Tensor actual, Tensor expected, String name) {
        assertThat(Tensors.shape(actual)).as(name).isEqualTo(Tensors.shape(expected));
        double difference = actual.sub(expected).abs().max().item_double();
        assertThat(difference).as(name).isLessThan(1e-6);
    }

    private AdapterMisfitException misfit(MergeOptions options) {
        AdapterMisfitException problems = catchThrowableOfType(
                AdapterMisfitException.class,
                () -> CheckpointMerge.merge(options, folder.resolve("out"), false, MergeProgress.NONE));
        assertThat(problems).isNotNull();
        assertThat(folder.resolve("out")).doesNotExist();
        assertThat(folder.resolve("out.merging")).doesNotExist();
        return problems;
    }

    @Test
    void everyProblemIsInOneMessage() throws IOException {
        put(base, "model.layers.0.q_proj.weight", 6, 5);
        put(base, "model.layers.0.v_proj.weight", 6, 5);
        put(base, "model.layers.0.k_proj.weight", 6, 5);
        base.put("model.layers.0.k_proj.qweight", torch.zeros(new long[] {2, 2}).to(ScalarType.Int));
        put(adapter, PREFIX + "model.layers.0.q_prj.lora_A.weight", 2, 5);
        put(adapter, PREFIX + "model.layers.0.q_prj.lora_B.weight", 6, 2);
        put(adapter, PREFIX + "model.layers.0.v_proj.lora_A.weight", 2, 5);
        put(adapter, PREFIX + "model.layers.0.k_proj.lora_A.weight", 3, 5);
        put(adapter, PREFIX + "model.layers.0.k_proj.lora_B.weight", 6, 3);
        put(adapter, PREFIX + "model.layers.0.k_proj.lora_C.weight", 6, 3);
        put(adapter, "something.else", 1);
        var problems = misfit(options("{}", LoraConfig.builder().r(2).targetModules("q_prj", "v_proj", "k_proj")))
                .problems();
        assertThat(String.join("\n", problems))
                .contains("q_prj.lora_A.weight has no tensor model.layers.0.q_prj.weight", "near misses")
                .contains("model.layers.0.q_proj.weight")
                .contains("v_proj.lora_A.weight has no B")
                .contains("k_proj.lora_A.weight has rank 3 and 2 in adapter_config.json")
                .contains("lora_C.weight is no name of PEFT's layout")
                .contains("something.else is no name of PEFT's layout");
        assertThat(problems).hasSizeGreaterThanOrEqualTo(5);
    }

    @Test
    void whatTheConfigurationAsksForMustBeThere() throws IOException {
        for (int i = 0; i < 3; i++) {
            put(base, "model.layers." + i + ".q_proj.weight", 6, 5);
            put(base, "model.layers." + i + ".q_proj.bias", 6);
            put(base, "model.layers." + i + ".mlp.experts.0.q_proj.weight", 6, 5);
        }
        put(base, "model.head.weight", 3, 3);
        put(adapter, PREFIX + "model.layers.0.q_proj.lora_A.weight", 2, 5);
        put(adapter, PREFIX + "model.layers.0.q_proj.lora_B.weight", 6, 2);
        LoraConfigBuilder config = LoraConfig.builder()
                .r(2)
                .targetModules("q_proj")
                .modulesToSave("head")
                .otherField("lora_bias", true);
        MergeOptions options = options("{\"num_hidden_layers\": 2}", config);
        assertThat(misfit(options).problems())
                .hasSize(4)
                .anyMatch(p -> p.contains("lacks what lora_bias"))
                .anyMatch(p -> p.contains("target_modules mean model.layers.1.q_proj"))
                .anyMatch(p -> p.contains("modules_to_save [head] means model.head.weight"))
                .anyMatch(p -> p.contains("modules_to_save names \"head\""));
        MergePlan plan = CheckpointMerge.plan(options.withLenient(true));
        assertThat(plan.notes()).anyMatch(note -> note.contains("target_modules mean model.layers.1.q_proj"));
        assertThat(plan.changes()).hasSize(1);
    }

    @ParameterizedTest
    @CsvSource({
        "model., ''",
        "'', model.",
        "model.language_model., model.",
        "language_model.model., model.",
    })
    void theBeginningOfPathsMayDiffer(String inAdapter, String inCheckpoint) throws IOException {
        Tensor w = put(base, inCheckpoint + "layers.0.q_proj.weight", 6, 5);
        put(base, inCheckpoint + "layers.1.q_proj.weight", 6, 5);
        Tensor a = put(adapter, PREFIX + inAdapter + "layers.0.q_proj.lora_A.weight", 2, 5);
        Tensor b = put(adapter, PREFIX + inAdapter + "layers.0.q_proj.lora_B.weight", 6, 2);
        MergeOptions options =
                options("{}", LoraConfig.builder().r(2).loraAlpha(3).targetModules(inAdapter + "layers.0.q_proj"));
        try (MappedTensors out = merge(options)) {
            assertClose(out.tensor(inCheckpoint + "layers.0.q_proj.weight"), sum(w, 1.5, b, a), inAdapter);
        }
    }

    @Test
    void severalBeginningsThatWouldDoAreRefused() throws IOException {
        put(base, "text.layers.0.q_proj.weight", 6, 5);
        put(base, "vision.layers.0.q_proj.weight", 6, 5);
        put(adapter, PREFIX + "layers.0.q_proj.lora_A.weight", 2, 5);
        put(adapter, PREFIX + "layers.0.q_proj.lora_B.weight", 6, 2);
        assertThat(misfit(options("{}", LoraConfig.builder().r(2).targetModules("q_proj")))
                        .getMessage())
                .contains("several changes of their beginning would do", "text.", "vision.");
    }

    @Test
    void tiedEmbeddingsAreWhatIsChosen() throws IOException {
        Tensor w = put(base, "model.embed_tokens.weight", 7, 5);
        put(base, "model.norm.weight", 5);
        Tensor a = put(adapter, PREFIX + "model.embed_tokens.lora_embedding_A", 2, 7);
        Tensor b = put(adapter, PREFIX + "model.embed_tokens.lora_embedding_B", 5, 2);
        String json = "{\"tie_word_embeddings\": true, \"x\": 1}";
        MergeOptions options =
                options(json, LoraConfig.builder().r(2).loraAlpha(6).targetModules("embed_tokens"));
        assertThat(misfit(options).getMessage()).contains("--tied untie", "--tied both");
        Tensor sum = w.add(b.matmul(a).t(), new Scalar(3.0));
        try (MappedTensors out = merge(options.withTied(TiedPolicy.UNTIE))) {
            assertClose(out.tensor("model.embed_tokens.weight"), sum, "embedding");
            assertThat(out.tensor("lm_head.weight").equal(w)).isTrue();
        }
        assertThat(Files.readString(folder.resolve("out/config.json")).replaceAll("\\s", ""))
                .contains("\"tie_word_embeddings\":false", "\"x\":1");
        CheckpointMerge.delete(folder.resolve("out"));
        try (MappedTensors out = merge(options.withTied(TiedPolicy.BOTH))) {
            assertClose(out.tensor("model.embed_tokens.weight"), sum, "embedding");
            assertThat(out.names()).doesNotContain("lm_head.weight");
        }
        assertThat(folder.resolve("out/config.json")).hasContent(json);
    }

    @Test
    void anOutputLayerIsUntied() throws IOException {
        Tensor w = put(base, "model.embed_tokens.weight", 7, 5);
        Tensor a = put(adapter, PREFIX + "lm_head.lora_A.weight", 2, 5);
        Tensor b = put(adapter, PREFIX + "lm_head.lora_B.weight", 7, 2);
        MergeOptions options = options(
                "{\"text_config\": {\"tie_word_embeddings\": true}}",
                LoraConfig.builder().r(2).targetModules("lm_head"));
        assertThat(misfit(options).getMessage()).contains("--tied");
        try (MappedTensors out = merge(options.withTied(TiedPolicy.UNTIE))) {
            assertClose(out.tensor("lm_head.weight"), sum(w, 4, b, a), "lm_head");
            assertThat(out.tensor("model.embed_tokens.weight").equal(w)).isTrue();
        }
        assertThat(Files.readString(folder.resolve("out/config.json")).replaceAll("\\s", ""))
                .contains("\"text_config\":{\"tie_word_embeddings\":false}");
    }

    @Test
    void theVocabularyMayGrow() throws IOException {
        put(base, "model.embed_tokens.weight", 7, 5);
        put(base, "lm_head.weight", 7, 5);
        put(base, "model.q.weight", 4, 5);
        Tensor embedding = put(adapter, PREFIX + "model.embed_tokens.weight", 9, 5);
        LoraConfigBuilder config = LoraConfig.builder().r(2).targetModules("q");
        put(adapter, PREFIX + "model.q.lora_A.weight", 2, 5);
        put(adapter, PREFIX + "model.q.lora_B.weight", 4, 2);
        assertThat(misfit(options("{\"vocab_size\": 7}", config)).getMessage())
                .contains("lm_head.weight keeps its rows", "[9]");
        Tensor head = put(adapter, PREFIX + "lm_head.weight", 9, 5);
        try (MappedTensors out = merge(options("{\"vocab_size\": 7}", config))) {
            assertThat(out.tensor("model.embed_tokens.weight").equal(embedding)).isTrue();
            assertThat(out.tensor("lm_head.weight").equal(head)).isTrue();
        }
        assertThat(Files.readString(folder.resolve("out/config.json")).replaceAll("\\s", ""))
                .contains("\"vocab_size\":9");
    }

    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void stackedExpertsGetTheirOwnFactors(boolean transposed) throws IOException {
        int e = 3;
        int r = 2;
        // Square, so that only the model's type says which way the experts lie.
        Tensor gate = put(base, "model.layers.0.mlp.experts.gate_up_proj", e, 6, 6);
        Tensor down = put(base, "model.layers.0.mlp.experts.down_proj", e, 6, 6);
        Tensor a1 = put(adapter, PREFIX + "model.layers.0.mlp.experts.base_layer.lora_A.weight", e * r, 6);
        Tensor b1 = put(adapter, PREFIX + "model.layers.0.mlp.experts.base_layer.lora_B.weight", 6, r * e);
        Tensor a2 = put(adapter, PREFIX + "model.layers.0.mlp.experts.lora_A.weight", e * r, 6);
        Tensor b2 = put(adapter, PREFIX + "model.layers.0.mlp.experts.lora_B.weight", 6, r * e);
        MergeOptions options = options(
                transposed ? "{\"model_type\": \"gpt_oss\"}" : "{\"model_type\": \"mixtral\"}",
                LoraConfig.builder()
                        .r(r)
                        .loraAlpha(5)
                        .targetModules(new String[0])
                        .otherField("target_parameters", List.of("mlp.experts.down_proj", "mlp.experts.gate_up_proj")));
        try (PointerScope scope = new PointerScope();
                NoGradGuard guard = new NoGradGuard();
                MappedTensors out = merge(options)) {
            assertClose(
                    out.tensor("model.layers.0.mlp.experts.gate_up_proj"),
                    experts(gate, a1, b1, e, r, transposed),
                    "gate");
            assertClose(
                    out.tensor("model.layers.0.mlp.experts.down_proj"),
                    experts(down, a2, b2, e, r, transposed),
                    "down");
        }
    }

    /** PEFT's einsum: rows of A by expert, columns of B by rank and then expert. */
    private static Tensor experts(Tensor w, Tensor a, Tensor b, int e, int r, boolean transposed) {
        Tensor result = w.clone();
        for (int i = 0; i < e; i++) {
            Tensor ours = a.narrow(0, (long) i * r, r);
            Tensor delta = torch.zeros(new long[] {b.size(0), a.size(1)});
            for (int k = 0; k < r; k++) {
                Tensor column = b.narrow(1, (long) k * e + i, 1);
                delta = delta.add(column.matmul(ours.narrow(0, k, 1)));
            }
            result.select(0, i).add_(transposed ? delta.t() : delta, new Scalar(2.5));
        }
        return result;
    }

    @ParameterizedTest
    @ValueSource(
            strings = {
                "mlp.experts.%d.gate_proj|mlp.experts.%d.up_proj",
                "block_sparse_moe.experts.%d.w1|block_sparse_moe.experts.%d.w3"
            })
    void expertsMayBeApartInTheCheckpoint(String spelling) throws IOException {
        int e = 3;
        int r = 2;
        String[] names = spelling.split("\\|");
        Map<String, Tensor> before = new LinkedHashMap<>();
        for (int i = 0; i < e; i++) {
            for (String name : names) {
                String tensor = "model.layers.0." + name.formatted(i) + ".weight";
                before.put(tensor, put(base, tensor, 7, 5));
            }
        }
        put(base, "model.layers.0.mlp.gate.weight", 3, 5);
        Tensor a = put(adapter, PREFIX + "model.layers.0.mlp.experts.lora_A.weight", e * r, 5);
        Tensor b = put(adapter, PREFIX + "model.layers.0.mlp.experts.lora_B.weight", 14, r * e);
        MergeOptions options = options(
                "{}",
                LoraConfig.builder()
                        .r(r)
                        .loraAlpha(5)
                        .targetModules(new String[0])
                        .otherField("target_parameters", List.of("mlp.experts.gate_up_proj")));
        Tensor zero = torch.zeros(new long[] {e, 14, 5});
        Tensor delta = experts(zero, a, b, e, r, false);
        try (MappedTensors out = merge(options)) {
            for (int i = 0; i < e; i++) {
                for (int n = 0; n < 2; n++) {
                    String tensor = "model.layers.0." + names[n].formatted(i) + ".weight";
                    Tensor expected = before.get(tensor).add(delta.select(0, i).narrow(0, 7L * n, 7));
                    assertClose(out.tensor(tensor), expected, tensor);
                }
            }
        }
    }

    @Test
    void fusedProjectionsAreTensorsLikeOthers() throws IOException {
        Tensor w = put(base, "transformer.h.0.attn.qkv_proj.weight", 15, 5);
        Tensor a = put(adapter, PREFIX + "transformer.h.0.attn.qkv_proj.lora_A.weight", 2, 5);
        Tensor b = put(adapter, PREFIX + "transformer.h.0.attn.qkv_proj.lora_B.weight", 15, 2);
        try (MappedTensors out = merge(options("{}", LoraConfig.builder().r(2).targetModules("qkv_proj")))) {
            assertClose(out.tensor("transformer.h.0.attn.qkv_proj.weight"), sum(w, 4, b, a), "qkv");
        }
    }

    @ParameterizedTest
    @CsvSource({"gpt2, false, true", "llama, true, true", "llama, false, false"})
    void aSquareWeightLiesAsTheModelSays(String type, boolean fanInFanOut, boolean transposed) throws IOException {
        Tensor w = put(base, "h.0.attn.c_proj.weight", 5, 5);
        Tensor a = put(adapter, PREFIX + "h.0.attn.c_proj.lora_A.weight", 2, 5);
        Tensor b = put(adapter, PREFIX + "h.0.attn.c_proj.lora_B.weight", 5, 2);
        MergeOptions options = options(
                "{\"model_type\": \"" + type + "\"}",
                LoraConfig.builder().r(2).targetModules("c_proj").fanInFanOut(fanInFanOut));
        Tensor delta = b.matmul(a);
        try (MappedTensors out = merge(options)) {
            Tensor expected = w.add(transposed ? delta.t() : delta, new Scalar(4.0));
            assertClose(out.tensor("h.0.attn.c_proj.weight"), expected, type);
        }
    }

    @Test
    void quantizedWeightsAreRefusedByWhatTheyAre() throws IOException {
        base.put("model.q.weight", torch.zeros(new long[] {6, 5}).to(ScalarType.Float8_e4m3fn));
        base.put("model.k.qweight", torch.zeros(new long[] {6, 5}).to(ScalarType.Int));
        for (String name : List.of("q", "k")) {
            put(adapter, PREFIX + "model." + name + ".lora_A.weight", 2, 5);
            put(adapter, PREFIX + "model." + name + ".lora_B.weight", 6, 2);
        }
        assertThat(misfit(options("{}", LoraConfig.builder().r(2).targetModules("q", "k")))
                        .problems())
                .anyMatch(p -> p.contains("model.q.weight is F8_E4M3"))
                .anyMatch(p -> p.contains("model.k.qweight") && p.contains("quantized"))
                .hasSize(2);
    }

    @Test
    void replacementsHaveNoWeightAndDoNotContradict() throws IOException {
        put(base, "model.q.weight", 6, 5);
        put(base, "model.head.weight", 3, 5);
        put(adapter, PREFIX + "model.head.weight", 3, 5);
        put(adapter, PREFIX + "model.q.lora_A.weight", 2, 5);
        put(adapter, PREFIX + "model.q.lora_B.weight", 6, 2);
        LoraConfigBuilder config = LoraConfig.builder().r(2).targetModules("q").modulesToSave("head");
        MergeOptions options = options("{}", config);
        Path first = options.adapters().get(0).folder();
        assertThat(misfit(MergeOptions.of(options.checkpoint(), new WeightedAdapter(first, 0.5)))
                        .getMessage())
                .contains("model.head.weight replaces a tensor", "weight 0.5");
        Path second = Files.createDirectories(folder.resolve("second"));
        Files.copy(first.resolve("adapter_config.json"), second.resolve("adapter_config.json"));
        TensorFiles.write(second.resolve("adapter_model.safetensors"), adapter, TensorFiles.METADATA);
        MergeOptions both =
                MergeOptions.of(options.checkpoint(), new WeightedAdapter(first, 1), new WeightedAdapter(second, 1));
        assertThat(CheckpointMerge.plan(both).changes()).hasSize(2);
        put(adapter, PREFIX + "model.head.weight", 3, 5);
        TensorFiles.write(second.resolve("adapter_model.safetensors"), adapter, TensorFiles.METADATA);
        assertThat(misfit(both).getMessage()).contains("both replace model.head.weight and differ");
    }

    @Test
    void valuesThatAreNotFiniteAreRefused() throws IOException {
        put(base, "model.q.weight", 6, 5);
        put(adapter, PREFIX + "model.q.lora_A.weight", 2, 5);
        Tensor b = put(adapter, PREFIX + "model.q.lora_B.weight", 6, 2);
        b.mul_(new Scalar(1e7));
        MergeOptions options = options("{}", LoraConfig.builder().r(2).targetModules("q"));
        assertThatThrownBy(() -> merge(options.withDtype(DType.F16)))
                .hasMessageContaining("\"model.q.weight\" would have NaN or infinite values in F16");
        assertThat(folder.resolve("out.merging")).doesNotExist();
        try (MappedTensors out = merge(options.withDtype(DType.F16).withAllowNonFinite(true))) {
            assertThat(torch.isinf(out.tensor("model.q.weight")).any().item_bool())
                    .isTrue();
        }
    }

    @Test
    void thePlanNamesKeysRankScaleAndNorms() throws IOException {
        Tensor w = put(base, "model.q.weight", 60, 50);
        Tensor a = put(adapter, PREFIX + "model.q.lora_A.weight", 2, 50);
        Tensor b = put(adapter, PREFIX + "model.q.lora_B.weight", 60, 2);
        b.mul_(new Scalar(1e-3));
        MergeOptions options =
                options("{}", LoraConfig.builder().r(2).loraAlpha(5).targetModules("q"));
        MergePlan plan = CheckpointMerge.plan(options.withDtype(DType.BF16));
        MergePlan.Change change = plan.changes().get(0);
        double delta = 2.5 * b.matmul(a).norm().item_double();
        assertThat(change.deltaNorm()).isCloseTo(delta, org.assertj.core.data.Percentage.withPercentage(1e-3));
        assertThat(change.weightNorm())
                .isCloseTo(w.norm().item_double(), org.assertj.core.data.Percentage.withPercentage(1e-3));
        // What rounding to bfloat16 really loses, in decibels below what is added.
        Tensor lost = w.to(ScalarType.BFloat16).to(ScalarType.Float).sub(w);
        double real = 20 * Math.log10(delta / lost.norm().item_double());
        assertThat(change.signal()).isCloseTo(real, org.assertj.core.data.Offset.offset(1.0));
        assertThat(change.keys()).hasSize(2).allMatch(key -> key.startsWith("0: " + PREFIX + "model.q.lora_"));
        assertThat(change.actions()).containsExactly("adds r=2 scale=2.5");
        assertThat(plan.notes()).anyMatch(note -> note.contains("dB above the rounding of BF16"));
        assertThat(plan.json()).containsKeys("changes", "bytes_written", "seconds");
        assertThat(folder.resolve("out")).doesNotExist();
    }
}
