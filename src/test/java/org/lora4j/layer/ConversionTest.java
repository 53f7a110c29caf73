package org.lora4j.layer;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import java.util.LinkedHashMap;
import java.util.Map;
import java.util.stream.Stream;
import org.bytedeco.javacpp.LongPointer;
import org.bytedeco.pytorch.Conv2dImpl;
import org.bytedeco.pytorch.Conv2dOptions;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.lora4j.config.LoraConfig;
import tools.jackson.databind.JsonNode;

class ConversionTest {
    static Stream<InitCase> cases() {
        return InitCase.of("conversion");
    }

    @ParameterizedTest
    @MethodSource("cases")
    void givesTheFactorsPeftSaves(InitCase golden) {
        for (JsonNode layer : golden.json().get("layers")) {
            Factors plain = Conversion.subtractInitial(
                    factors(golden, "trained", layer.asString()), factors(golden, "start", layer.asString()));
            Factors expected = factors(golden, "plain", layer.asString());
            assertThat(InitCase.difference(plain.a(), expected.a())).isZero();
            assertThat(InitCase.difference(plain.b(), expected.b())).isZero();
        }
    }

    @ParameterizedTest
    @MethodSource("cases")
    void givesTheConfigurationPeftSaves(InitCase golden) {
        LoraConfig made = Conversion.config(config(golden.json().get("before")));
        assertThat(made).isEqualTo(config(golden.json().get("after")));
    }

    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void keepsTheScaleOfEveryLayer(boolean rslora) {
        LoraConfig before = LoraConfig.builder()
                .r(3)
                .loraAlpha(5)
                .useRslora(rslora)
                .rankPattern(Map.of("a", 7))
                .alphaPattern(Map.of("a", 2, "b", 9))
                .initLoraWeights("olora")
                .build();
        LoraConfig after = Conversion.config(before);
        for (String path : new String[] {"a", "x.b", "c"}) {
            assertThat(after.rankFor(path)).isEqualTo(2 * before.rankFor(path));
            assertThat(after.scale(path)).isCloseTo(before.scale(path), within(1e-12));
        }
    }

    @ParameterizedTest
    @ValueSource(strings = {"loftq", "eva", "gaussian", "orthogonal", "mica"})
    void refusesStartsThatCannotBeSubtracted(String init) {
        LoraConfig config = LoraConfig.builder()
                .initLoraWeights(init)
                .otherField("loftq_config", Map.of("loftq_bits", 4))
                .build();
        assertThatThrownBy(() -> Conversion.config(config)).hasMessageContaining("initLoraWeights is " + init);
    }

    @Test
    void joinsAGroupedConvolutionGroupByGroup() {
        torch.manual_seed(5);
        TensorOptions type = new TensorOptions(torch.ScalarType.Double);
        Tensor x = torch.randn(new long[] {2, 4, 5, 5}, type);
        Factors trained =
                new Factors(torch.randn(new long[] {4, 4, 3, 3}, type), torch.randn(new long[] {6, 2, 1, 1}, type));
        Factors initial =
                new Factors(torch.randn(new long[] {4, 4, 3, 3}, type), torch.randn(new long[] {6, 2, 1, 1}, type));
        Tensor expected = grouped(x, trained).sub(grouped(x, initial));
        assertThat(InitCase.difference(grouped(x, Conversion.subtractInitial(trained, initial)), expected))
                .isLessThan(1e-10);
    }

    @Test
    void refusesFactorsOfOtherShapes() {
        Factors trained = new Factors(torch.randn(2, 4), torch.randn(3, 2));
        Factors initial = new Factors(torch.randn(1, 4), torch.randn(3, 1));
        assertThatThrownBy(() -> Conversion.subtractInitial(trained, initial))
                .hasMessageContaining("Float[2, 4]")
                .hasMessageContaining("Float[1, 4]");
    }

    /** B (A x) with two groups in B. */
    private static Tensor grouped(Tensor x, Factors factors) {
        return convolve(convolve(x, factors.a(), 1), factors.b(), 2);
    }

    private static Tensor convolve(Tensor x, Tensor weight, long groups) {
        Conv2dOptions options =
                new Conv2dOptions(x.size(1), weight.size(0), new LongPointer(weight.size(2), weight.size(3)));
        options.groups().put(groups);
        options.bias().put(false);
        Conv2dImpl convolution = new Conv2dImpl(options);
        convolution.weight().set_data(weight);
        return convolution.forward(x);
    }

    private static Factors factors(InitCase golden, String part, String layer) {
        return new Factors(
                golden.tensor(part + "." + layer + ".lora_A"), golden.tensor(part + "." + layer + ".lora_B"));
    }

    private static LoraConfig config(JsonNode json) {
        Map<String, Integer> ranks = new LinkedHashMap<>();
        json.get("rank_pattern")
                .properties()
                .forEach(e -> ranks.put(e.getKey(), e.getValue().asInt()));
        Map<String, Double> alphas = new LinkedHashMap<>();
        json.get("alpha_pattern")
                .properties()
                .forEach(e -> alphas.put(e.getKey(), e.getValue().asDouble()));
        JsonNode init = json.get("init_lora_weights");
        var builder = LoraConfig.builder()
                .r(json.get("r").asInt())
                .loraAlpha(json.get("lora_alpha").asDouble())
                .useRslora(json.get("use_rslora").asBoolean())
                .rankPattern(ranks)
                .alphaPattern(alphas);
        return (init.isBoolean() ? builder.initLoraWeights(init.asBoolean()) : builder.initLoraWeights(init.asString()))
                .build();
    }
}
