package org.lora4j.format;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.OptionalDouble;
import java.util.Random;
import java.util.Set;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.config.BiasMode;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.LoraConfigBuilder;

/** What converts between layouts, and what is refused with a list of all that does not. */
class AdapterConverterTest {
    private static final List<String> MODULES = List.of("a", "a.q_proj", "a.k_proj", "b_c", "b_c.out.0");

    @TempDir
    Path folder;

    private final Random random = new Random(5);
    private SafetensorsWriter file = new SafetensorsWriter(Map.of());

    private AdapterConverterTest add(String name, DType dtype, long... shape) {
        byte[] bytes = new byte[(int) SafetensorsHeader.bytes(dtype, shape)];
        random.nextBytes(bytes);
        file.add(name, dtype, shape, out -> out.write(ByteBuffer.wrap(bytes)));
        return this;
    }

    private AdapterConverterTest alpha(String name, double value, DType dtype) {
        byte[] bytes = java.util.Objects.requireNonNull(Scalars.encode(value, dtype));
        file.add(name, dtype, new long[0], out -> out.write(ByteBuffer.wrap(bytes)));
        return this;
    }

    /** Two factors in kohya's layout. */
    private AdapterConverterTest kohya(String module, int rank) {
        return add("lora_unet_" + module + ".lora_down.weight", DType.F32, rank, 5)
                .add("lora_unet_" + module + ".lora_up.weight", DType.F32, 3, rank);
    }

    private Path write() throws IOException {
        Path path = folder.resolve("foreign.safetensors");
        file.write(path);
        file = new SafetensorsWriter(Map.of());
        return path;
    }

    private ForeignAdapter convert(List<String> modules) throws IOException {
        return AdapterConverter.toPeft(write(), modules, folder.resolve("peft"));
    }

    private void assertRefused(String... messages) throws IOException {
        Path path = write();
        assertThatThrownBy(() -> AdapterConverter.toPeft(path, MODULES, folder.resolve("peft")))
                .isInstanceOf(FormatException.class)
                .hasMessageStartingWith(path + ": ")
                .hasMessageContainingAll(messages);
        assertThat(folder.resolve("peft")).doesNotExist();
    }

    @ParameterizedTest
    @CsvSource({
        "base_model.model.q.lora_A.weight,PEFT",
        "lora_unet_q.lora_down.weight,KOHYA",
        "lora_te1_q.alpha,KOHYA",
        "unet.q.lora_A.weight,DIFFUSERS",
        "text_encoder.q.lora_linear_layer.down.weight,DIFFUSERS",
        "q.processor.to_q_lora.up.weight,DIFFUSERS",
        "model.q.lora_B.weight,DIFFUSERS",
        "unet.q.weight,UNKNOWN",
        "lora_unet.q,UNKNOWN"
    })
    void layoutsAreToldByTheirNames(String key, AdapterLayout layout) {
        assertThat(AdapterLayout.of(List.of(key))).isEqualTo(layout);
        assertThat(AdapterLayout.of(List.of(key, "something.else"))).isEqualTo(layout);
        assertThat(AdapterLayout.of(Set.of())).isEqualTo(AdapterLayout.UNKNOWN);
        String other = layout == AdapterLayout.PEFT ? "lora_unet_q.alpha" : "base_model.model.q.lora_B.weight";
        AdapterLayout both = AdapterLayout.of(List.of(key, other));
        assertThat(both).isIn(AdapterLayout.UNKNOWN, AdapterLayout.PEFT);
        assertThat(both == AdapterLayout.PEFT).isEqualTo(layout == AdapterLayout.UNKNOWN);
    }

    @Test
    void unevenRanksAndAlphasBecomePatterns() throws IOException {
        kohya("a_q_proj", 2).alpha("lora_unet_a_q_proj.alpha", 1, DType.BF16);
        kohya("a_k_proj", 2).alpha("lora_unet_a_k_proj.alpha", 0.1f, DType.F32);
        ForeignAdapter adapter = kohya("b_c_out_0", 1).convert(MODULES);
        assertThat(adapter.layout()).isEqualTo(AdapterLayout.KOHYA);
        LoraConfig config = AdapterConfigJson.read(folder.resolve("peft/adapter_config.json"));
        assertThat(config).isEqualTo(adapter.config());
        assertThat(config.r()).isEqualTo(2);
        assertThat(config.loraAlpha()).isEqualTo(1);
        assertThat(config.rankPattern()).containsExactly(Map.entry("^b_c\\.out\\.0", 1));
        assertThat(config.alphaPattern()).containsExactly(Map.entry("^a\\.k_proj", (double) 0.1f));
        assertThat(config.scale("a.q_proj")).isEqualTo(0.5);
        // Without an alpha the scale is one.
        assertThat(config.scale("b_c.out.0")).isEqualTo(1);
        assertThat(adapter.tensors()
                        .get("base_model.model.b_c.out.0.lora_A.weight")
                        .shape())
                .containsExactly(1, 5);
    }

    @Test
    void alphasOfDiffusersAreRead() throws IOException {
        add("unet.a.q_proj.lora.down.weight", DType.F16, 2, 5).add("unet.a.q_proj.lora.up.weight", DType.F16, 3, 2);
        ForeignAdapter adapter = alpha("unet.a.q_proj.alpha", 3, DType.F16).convert(MODULES);
        assertThat(adapter.config().scale("a.q_proj")).isEqualTo(1.5);
    }

    @Test
    void everythingUnknownIsListed() throws IOException {
        kohya("a_q_proj", 2).kohya("nowhere", 2).add("lora_unet_a_q_proj.hada_w1_a", DType.F32, 1);
        add("step", DType.I64);
        assertRefused(
                "names without a module in the base model: lora_unet_nowhere.lora_down.weight, "
                        + "lora_unet_nowhere.lora_up.weight",
                "names that mean nothing here: lora_unet_a_q_proj.hada_w1_a, step");
    }

    @Test
    void theOtherNamesOfTheSameUnetAreExplained() throws IOException {
        kohya("input_blocks_4_1_proj_in", 2);
        assertRefused("input_blocks, middle_block and output_blocks are names of the original code");
    }

    @Test
    void mixedLayoutsAreListed() throws IOException {
        kohya("a_q_proj", 2).add("unet.a.k_proj.lora_A.weight", DType.F32, 2, 5);
        assertRefused(
                "KOHYA: [lora_unet_a_q_proj.lora_down.weight, lora_unet_a_q_proj.lora_up.weight]",
                "DIFFUSERS: [unet.a.k_proj.lora_A.weight]");
        add("weight", DType.F32, 2, 5);
        assertRefused("no known layout: [weight]");
        add("base_model.model.a.q_proj.lora_A.weight", DType.F32, 2, 5);
        assertRefused("has PEFT's layout already");
    }

    @Test
    void allTensorsThatDoNotFitAreListed() throws IOException {
        add("lora_unet_a_q_proj.lora_down.weight", DType.F32, 2, 5);
        kohya("a_k_proj", 2).add("lora_unet_a_k_proj.alpha", DType.F32, 2);
        add("lora_unet_b_c_out_0.lora_down.weight", DType.F32, 2, 5)
                .add("lora_unet_b_c_out_0.lora_up.weight", DType.F32, 3, 4)
                .add("lora_unet_b_c_out_0.lora_mid.weight", DType.F32, 2, 2, 3, 3);
        assertRefused(
                "lora_unet_a_q_proj.lora_down.weight without the other factor",
                "lora_unet_a_k_proj.alpha: F32[2] is no single finite number",
                "lora_unet_b_c_out_0.lora_mid.weight is a third factor",
                "lora_unet_b_c_out_0.lora_down.weight: F32[2, 5] and lora_unet_b_c_out_0.lora_up.weight: F32[3, 4] "
                        + "are no two factors of one rank");
        alpha("lora_unet_a_q_proj.alpha", Double.POSITIVE_INFINITY, DType.F64).kohya("a_q_proj", 2);
        assertRefused("is no single finite number");
    }

    @Test
    void magnitudesThatAreNotOfOutputsAreRefused() throws IOException {
        kohya("a_q_proj", 2).add("lora_unet_a_q_proj.dora_scale", DType.F32, 1, 5);
        assertRefused("lora_unet_a_q_proj.dora_scale: F32[1, 5] has no magnitude for each of the 3 outputs");
        kohya("a_q_proj", 2).add("lora_unet_a_q_proj.dora_scale", DType.F32, 3, 1);
        kohya("a_k_proj", 2);
        assertRefused("for all adapted modules or none, and these have none: [a.k_proj]");
    }

    @Test
    void aNameOfTwoModulesIsRefused() throws IOException {
        List<String> modules = List.of("a.b_c", "a_b.c", "a.b.d");
        Path path = kohya("a_b_c", 2).kohya("a_b_d", 2).write();
        assertThatThrownBy(() -> AdapterConverter.toPeft(path, modules, folder.resolve("peft")))
                .isInstanceOf(FormatException.class)
                .hasMessageContaining("may mean any of the modules [a.b_c, a_b.c]")
                .hasMessageNotContaining("a_b_d");
        add("unet.a.q_proj.lora.down.weight", DType.F32, 2, 5).add("unet.a.q_proj.lora_A.weight", DType.F32, 2, 5);
        assertRefused("unet.a.q_proj.lora.down.weight and unet.a.q_proj.lora_A.weight are the same tensor twice");
        add("unet.a.q_proj.lora_A.weight", DType.F32, 2, 5).add("unet.a.q_proj.lora_B.weight", DType.F32, 5, 2);
        add("a.q_proj.lora_A.weight", DType.F32, 2, 5).add("a.q_proj.lora_B.weight", DType.F32, 5, 2);
        assertRefused("mean the same module \"a.q_proj\"; convert one part at a time");
    }

    @Test
    void aPartThatIsNotThereIsNamed() throws IOException {
        Path path = kohya("a_q_proj", 2).write();
        assertThatThrownBy(() -> AdapterConverter.toPeft(path, "lora_te", MODULES, folder.resolve("peft")))
                .isInstanceOf(FormatException.class)
                .hasMessageContaining("it has no part \"lora_te\" but [lora_unet]");
    }

    @Test
    void modulesPeftWouldMatchAsWellAreExcluded() throws IOException {
        List<String> modules = List.of("proj", "inner.proj", "inner.deep.proj", "other");
        ForeignAdapter adapter = kohya("proj", 2).kohya("inner_proj", 2).convert(modules);
        assertThat(adapter.config().targetModules()).hasToString("[inner.proj, proj]");
        assertThat(adapter.config().excludeModules()).hasToString("[inner.deep.proj]");
        Path path = kohya("x_inner_proj", 2).kohya("proj", 2).write();
        assertThatThrownBy(() -> AdapterConverter.toPeft(
                        path, List.of("proj", "inner.proj", "x.inner.proj"), folder.resolve("other")))
                .isInstanceOf(FormatException.class)
                .hasMessageContaining("no list of names tells the modules [x.inner.proj] from [inner.proj]");
    }

    @Test
    void metadataThatContradictsTheTensorsIsRefused() throws IOException {
        String json = "{\"unet.r\": 4, \"unet.lora_alpha\": 8, \"unet.use_dora\": true}";
        file = new SafetensorsWriter(Map.of("lora_adapter_metadata", json));
        add("unet.a.q_proj.lora_A.weight", DType.F32, 2, 5).add("unet.a.q_proj.lora_B.weight", DType.F32, 3, 2);
        alpha("unet.a.q_proj.alpha", 4, DType.F32);
        assertRefused(
                "have rank 2, and 4 in the metadata",
                "give an alpha beside the metadata",
                "use_dora or lora_bias of its metadata contradicts its tensors");
        file = new SafetensorsWriter(Map.of("lora_adapter_metadata", "{\"unet.r\": 0}"));
        add("unet.a.q_proj.lora_A.weight", DType.F32, 2, 5).add("unet.a.q_proj.lora_B.weight", DType.F32, 3, 2);
        assertRefused("metadata lora_adapter_metadata: LoraConfig.r = 0", "must be at least 1");
    }

    private Path peft(LoraConfigBuilder config) throws IOException {
        Path peft = java.nio.file.Files.createDirectories(folder.resolve("peft"));
        file.write(peft.resolve("adapter_model.safetensors"));
        file = new SafetensorsWriter(Map.of());
        AdapterConfigJson.write(peft.resolve("adapter_config.json"), config.build());
        return peft;
    }

    private AdapterConverterTest factors(String module, int rank, DType dtype) {
        return add("base_model.model." + module + ".lora_A.weight", dtype, rank, 5)
                .add("base_model.model." + module + ".lora_B.weight", dtype, 3, rank);
    }

    @Test
    void whatKohyaHasNoPlaceForIsListed() throws IOException {
        factors("q", 2, DType.F32).add("base_model.model.q.lora_B.bias", DType.F32, 3);
        add("base_model.model.emb.lora_embedding_A", DType.F32, 2, 7).add("base_model.model.head.weight", DType.F32, 2);
        Path peft = peft(LoraConfig.builder()
                .r(3)
                .targetModules("q", "emb")
                .bias(BiasMode.LORA_ONLY)
                .initLoraWeights("pissa")
                .otherField("alora_invocation_tokens", List.of(1L)));
        Path out = folder.resolve("kohya.safetensors");
        assertThatThrownBy(() -> AdapterConverter.toKohya(Map.of("lora_unet", peft), out))
                .isInstanceOf(FormatException.class)
                .hasMessageContainingAll(
                        "base_model.model.emb.lora_embedding_A is no factor of a linear layer or a convolution",
                        "base_model.model.head.weight is no factor",
                        "have rank 2, and 3 in the configuration",
                        "alora_invocation_tokens = [1] changes",
                        "init_lora_weights = pissa changed the base",
                        "bias = lora_only trains biases",
                        "base_model.model.q.lora_B.bias is a bias");
        assertThat(out).doesNotExist();
        assertThatThrownBy(() -> AdapterConverter.toDiffusers(Map.of("unet", peft), out))
                .isInstanceOf(FormatException.class)
                .hasMessageContaining("head.weight is no factor")
                .hasMessageNotContaining("pissa");
    }

    @Test
    void biasesOfBGoThroughDiffusers() throws IOException {
        factors("q", 2, DType.BF16).add("base_model.model.q.lora_B.bias", DType.BF16, 3);
        Path peft = peft(LoraConfig.builder().r(2).targetModules("q").loraBias(true));
        Path out = folder.resolve("diffusers.safetensors");
        AdapterConverter.toDiffusers(Map.of("transformer", peft), out);
        AdapterConverter.toPeft(out, List.of("q"), folder.resolve("back"));
        assertThat(folder.resolve("back/adapter_model.safetensors"))
                .hasSameBinaryContentAs(withFormat(peft.resolve("adapter_model.safetensors")));
        assertThat(folder.resolve("back/adapter_config.json"))
                .hasSameBinaryContentAs(peft.resolve("adapter_config.json"));
    }

    @Test
    void aPartOfAnotherLayoutIsRefused() {
        assertThatThrownBy(() -> AdapterConverter.toKohya(Map.of("unet", folder), folder.resolve("x")))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessageContaining("part \"unet\" is none of KOHYA; use lora_unet");
        assertThatThrownBy(() -> AdapterConverter.toDiffusers(Map.of("lora_unet", folder), folder.resolve("x")))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessageContaining("part \"lora_unet\" is none of DIFFUSERS; use unet");
    }

    @Test
    void twoModulesOfOneNameAreRefused() throws IOException {
        Path peft = factors("a.b_c", 2, DType.F32)
                .factors("a_b.c", 2, DType.F32)
                .peft(LoraConfig.builder().r(2).targetModules("a.b_c", "a_b.c"));
        assertThatThrownBy(
                        () -> AdapterConverter.toKohya(Map.of("lora_unet", peft), folder.resolve("kohya.safetensors")))
                .isInstanceOf(FormatException.class)
                .hasMessageContaining("two modules have the name lora_unet_a_b_c.lora_down.weight");
    }

    @ParameterizedTest
    @CsvSource({
        "16,BF16,BF16",
        "0.1,BF16,F64",
        "16777217,F32,F64",
        "257,BF16,F32",
        "0.333251953125,F16,F16",
        "7,F8_E4M3,F32"
    })
    void anAlphaHasTheTypeOfTheFactorsOrAWiderOne(double alpha, DType factors, DType expected) throws IOException {
        Path peft = factors("q", 2, factors)
                .peft(LoraConfig.builder().r(2).loraAlpha(alpha).targetModules("q"));
        Path out = folder.resolve("kohya.safetensors");
        AdapterConverter.toKohya(Map.of("lora_unet", peft), out);
        try (TensorFile kohya = TensorFile.open(out)) {
            TensorInfo info = kohya.tensor("lora_unet_q.alpha");
            assertThat(info).hasToString("lora_unet_q.alpha: " + expected + "[]");
            assertThat(Scalars.decode(info.dtype(), kohya.read(info.name()))).hasValue(alpha);
        }
        ForeignAdapter back = AdapterConverter.toPeft(out, List.of("q"), folder.resolve("back"));
        assertThat(back.config().loraAlpha()).isEqualTo(alpha);
    }

    @Test
    void theScaleOfRsloraBecomesAnAlpha() throws IOException {
        Path peft = factors("q", 4, DType.F32)
                .peft(LoraConfig.builder().r(4).loraAlpha(3).useRslora(true).targetModules("q"));
        Path out = folder.resolve("kohya.safetensors");
        AdapterConverter.toKohya(Map.of("lora_te", peft), out);
        ForeignAdapter back = AdapterConverter.toPeft(out, List.of("q"), folder.resolve("back"));
        assertThat(back.config().useRslora()).isFalse();
        assertThat(back.config().scale("q")).isEqualTo(1.5);
    }

    @Test
    void everyHalfIsReadAndWritten() {
        for (int bits = 0; bits <= 0xffff; bits++) {
            byte[] bytes = {(byte) bits, (byte) (bits >> 8)};
            for (DType dtype : new DType[] {DType.F16, DType.BF16}) {
                OptionalDouble value = Scalars.decode(dtype, ByteBuffer.wrap(bytes));
                if (Double.isFinite(value.orElseThrow()) && value.getAsDouble() != 0) {
                    assertThat(Scalars.encode(value.getAsDouble(), dtype))
                            .as("%s %x", dtype, bits)
                            .isEqualTo(bytes);
                }
            }
        }
        assertThat(Scalars.decode(DType.F16, ByteBuffer.wrap(new byte[] {0x55, 0x35})))
                .hasValue(0.333251953125);
        assertThat(Scalars.encode(65536, DType.F16)).isNull();
        assertThat(Scalars.encode(1e-9, DType.F16)).isNull();
    }

    @ParameterizedTest
    @ValueSource(longs = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10})
    void randomAdaptersComeBackFromBothLayouts(long seed) throws IOException {
        Random draw = new Random(seed);
        List<String> modules = new ArrayList<>();
        LoraConfigBuilder config = LoraConfig.builder().r(1 + draw.nextInt(4)).loraAlpha(draw.nextInt(9) / 2.0);
        java.util.Map<String, Integer> ranks = new java.util.LinkedHashMap<>();
        java.util.Map<String, Double> alphas = new java.util.LinkedHashMap<>();
        DType dtype = List.of(DType.F32, DType.F16, DType.BF16, DType.F64).get(draw.nextInt(4));
        int count = 1 + draw.nextInt(7);
        for (int i = 0; i < count; i++) {
            String module = List.of("blocks", "down_blocks", "x").get(draw.nextInt(3)) + "." + i + "."
                    + List.of("to_q", "ff.net.0.proj", "conv_in").get(draw.nextInt(3));
            modules.add(module);
            int rank = 1 + draw.nextInt(3);
            ranks.put("^" + module.replace(".", "\\."), rank);
            alphas.put("^" + module.replace(".", "\\."), 1 + draw.nextInt(64) / 8.0);
            boolean conv = draw.nextBoolean();
            String key = "base_model.model." + module;
            long[] down = conv ? new long[] {rank, 3, 3, 2} : new long[] {rank, 5};
            long[] up = conv ? new long[] {4, rank, 1, 1} : new long[] {4, rank};
            add(key + ".lora_A.weight", dtype, down).add(key + ".lora_B.weight", dtype, up);
        }
        Path peft = peft(config.rankPattern(ranks).alphaPattern(alphas).targetModules(modules));
        LoraConfig before = AdapterConfigJson.read(peft.resolve("adapter_config.json"));
        Path foreign = folder.resolve("foreign.safetensors");
        for (boolean kohya : new boolean[] {true, false}) {
            if (kohya) {
                AdapterConverter.toKohya(Map.of("lora_unet", peft), foreign);
            } else {
                AdapterConverter.toDiffusers(Map.of("unet", peft), foreign);
            }
            Path back = folder.resolve("back" + kohya);
            LoraConfig after = AdapterConverter.toPeft(foreign, modules, back).config();
            assertThat(back.resolve("adapter_model.safetensors"))
                    .hasSameBinaryContentAs(withFormat(peft.resolve("adapter_model.safetensors")));
            for (String module : modules) {
                assertThat(after.rankFor(module)).isEqualTo(before.rankFor(module));
                assertThat(after.alphaFor(module)).isEqualTo(before.alphaFor(module));
            }
        }
    }

    /** A file as it is with the metadata that conversions write. */
    private Path withFormat(Path path) throws IOException {
        Path copy = folder.resolve("copy.safetensors");
        SafetensorsWriter writer = new SafetensorsWriter(Map.of("format", "pt"));
        try (TensorFile tensors = TensorFile.open(path)) {
            tensors.tensors()
                    .forEach((name, info) -> writer.add(name, info.dtype(), info.shape(), tensors.source(name)));
            writer.write(copy);
        }
        return copy;
    }
}
