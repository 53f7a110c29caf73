package org.lora4j.model;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.PeftCompat;
import org.lora4j.ops.LibTorch;
import org.lora4j.ops.MappedTensors;
import org.lora4j.ops.TensorFiles;

/** Swapping an adapter of a live model for one in a folder, and files with too few or too many tensors. */
class HotswapTest {
    static {
        LibTorch.load();
    }

    private static LoraConfig small() {
        return LoraConfig.builder()
                .r(2)
                .loraAlpha(5)
                .targetModules("lin0")
                .initLoraWeights(false)
                .build();
    }

    /** Other ranks by pattern, another target, DoRA. */
    private static LoraConfig large() {
        return LoraConfig.builder()
                .r(3)
                .loraAlpha(4)
                .rankPattern(Map.of("lin1", 1))
                .alphaPattern(Map.of("lin1", 9))
                .targetModules("lin0", "lin1")
                .useDora(true)
                .initLoraWeights(false)
                .build();
    }

    @Test
    void afterASwapTheModelIsTheOneLoadedAfresh(@TempDir Path folder) throws IOException {
        try (PointerScope scope = new PointerScope()) {
            torch.manual_seed(1);
            Toys.Mlp net = new Toys.Mlp();
            Tensor x = torch.randn(3, 10);
            LoraModel<Toys.Mlp> model = Lora.wrap(net, large(), "large");
            model.save(folder.resolve("large"), "large");
            Tensor large = net.forward(x).detach().clone();
            model.addAdapter("a", small());
            model.save(folder.resolve("small"), "a");
            model.setActive("a");
            Tensor small = net.forward(x).detach().clone();
            assertThat(GoldenCase.difference(small, large)).isGreaterThan(0.01);

            model.hotswap("a", folder.resolve("large"));
            assertThat(net.forward(x).equal(large)).isTrue();
            assertThat(model.activeAdapters()).containsExactly("a");
            assertThat(model.adapterNames()).containsExactly("large", "a");
            assertThat(model.trainableParameters()).hasSize(6).allMatch(Tensor::requires_grad);
            model.hotswap("a", folder.resolve("small"));
            assertThat(net.forward(x).equal(small)).isTrue();
            assertThat(model.trainableParameters()).hasSize(2);

            model.mergeAdapter();
            assertThatThrownBy(() -> model.hotswap("a", folder.resolve("large")))
                    .isInstanceOf(IllegalStateException.class)
                    .hasMessageContaining("unmergeAdapter");
            model.unmergeAdapter();
            assertThatThrownBy(() -> model.hotswap("b", folder.resolve("large")))
                    .hasMessageContaining("\"b\"");
            Path config = folder.resolve("large").resolve("adapter_config.json");
            Files.writeString(config, Files.readString(config).replace("\"r\": 3", "\"r\": 4"));
            assertThatThrownBy(() -> model.hotswap("a", folder.resolve("large")))
                    .hasMessageContaining("lin0.lora_A");
            assertThat(net.forward(x).equal(small)).isTrue();
        }
    }

    @Test
    void peftForgetsPatternsWhenItSwaps(@TempDir Path folder) throws IOException {
        try (PointerScope scope = new PointerScope()) {
            LoraModel<Toys.Mlp> model =
                    Lora.wrap(new Toys.Mlp(), large(), "a", Set.of(PeftCompat.HOTSWAP_IGNORES_PATTERNS));
            model.save(folder, "a");
            assertThat(scale(model, "lin1")).isEqualTo(9);
            model.hotswap("a", folder);
            assertThat(scale(model, "lin0")).isEqualTo(4.0 / 3);
            assertThat(scale(model, "lin1")).isEqualTo(4.0 / 3);
            LoraModel<Toys.Mlp> right = Lora.wrap(new Toys.Mlp(), large(), "a");
            right.hotswap("a", folder);
            assertThat(scale(right, "lin1")).isEqualTo(9);
        }
    }

    @Test
    void filesThatDoNotFitAreTakenOnlyOnRequest(@TempDir Path folder) throws IOException {
        try (PointerScope scope = new PointerScope()) {
            LoraModel<Toys.Mlp> model = Lora.wrap(new Toys.Mlp(), large(), "a");
            model.save(folder, "a");
            Path file = folder.resolve("adapter_model.safetensors");
            Map<String, Tensor> tensors = new java.util.LinkedHashMap<>();
            try (MappedTensors all = TensorFiles.open(file)) {
                all.names().forEach(key -> tensors.put(key, all.tensor(key).clone()));
            }
            Tensor gone = tensors.remove("base_model.model.lin0.lora_B.weight");
            tensors.put("base_model.model.lin9.lora_A.weight", gone);
            TensorFiles.write(file, tensors, TensorFiles.METADATA);
            assertThatThrownBy(() -> Lora.load(new Toys.Mlp(), folder, "a"))
                    .hasMessageContaining("missing base_model.model.lin0.lora_B.weight")
                    .hasMessageContaining("unexpected base_model.model.lin9.lora_A.weight");
            LoraModel<Toys.Mlp> lenient = Lora.load(new Toys.Mlp(), folder, "a", Set.of(PeftCompat.LENIENT_KEYS));
            assertThat(b(lenient, "lin1").equal(b(model, "lin1"))).isTrue();
            assertThat(b(lenient, "lin0").equal(b(model, "lin0"))).isFalse();
        }
    }

    private static double scale(LoraModel<Toys.Mlp> model, String path) {
        return Objects.requireNonNull(model.adapter("a").weights().get(path)).scale();
    }

    private static Tensor b(LoraModel<Toys.Mlp> model, String path) {
        return Objects.requireNonNull(model.adapter("a").weights().get(path)).b();
    }
}
