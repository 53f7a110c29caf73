package org.lora4j.ops;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.lora4j.format.FormatException;

/** Weights that bitsandbytes has quantized; src/test/python/quantization/make_golden.py made the file. */
class QuantizedFilesTest {
    private static final Path GOLDEN = Path.of("src/test/resources/golden/quantization/weights.safetensors");
    private static final String STATE = "l.weight.quant_state.bitsandbytes__nf4";

    @TempDir
    Path folder;

    private PointerScope scope;

    @BeforeEach
    void open() {
        LibTorch.load();
        scope = new PointerScope();
    }

    @AfterEach
    void close() {
        scope.close();
    }

    @ParameterizedTest
    @CsvSource({
        "nf4, 64",
        "nf4_bf16_odd, 64",
        "nf4_double, 64",
        "nf4_double_f16, 32",
        "nf4_as_bf16, 128",
        "fp4_odd, 64",
        "fp4_double, 64",
        "int8, 0",
        "int8_bf16, 0"
    })
    void bitsAreThoseOfBitsandbytes(String name, int blockSize) throws IOException {
        try (MappedTensors golden = TensorFiles.open(GOLDEN)) {
            QuantizedWeight read = QuantizedFiles.read(golden, name);
            Tensor dequantized = golden.tensor(name + ".dequantized");
            assertThat(read.dequantize(Tensors.type(dequantized)).equal(dequantized))
                    .isTrue();
            Tensor original = golden.tensor(name + ".original");
            QuantizedWeight made = name.startsWith("int8")
                    ? Int8Weight.quantize(original)
                    : FourBitWeight.quantize(
                            original,
                            FourBit.of(name.substring(0, 3)),
                            blockSize,
                            name.matches(".*(double|as_bf16).*"));
            Map<String, Tensor> written = QuantizedFiles.tensors(name, made);
            assertThat(written.keySet()).isEqualTo(QuantizedFiles.names(golden.names(), name));
            written.forEach((key, tensor) -> {
                Tensor expected = golden.tensor(key);
                boolean seenAsOther = Tensors.type(expected) != Tensors.type(tensor);
                Tensor same = seenAsOther ? expected.view(ScalarType.Byte).view(-1, 1) : expected;
                assertThat(tensor.equal(same)).as(key).isTrue();
            });
        }
    }

    @Test
    void theQuantizedLayersOfAFileAreFound() throws IOException {
        try (MappedTensors golden = TensorFiles.open(GOLDEN)) {
            assertThat(QuantizedFiles.layers(golden.names()))
                    .containsExactlyInAnyOrder(
                            "nf4",
                            "nf4_bf16_odd",
                            "nf4_double",
                            "nf4_double_f16",
                            "nf4_as_bf16",
                            "fp4_odd",
                            "fp4_double",
                            "int8",
                            "int8_bf16");
        }
        assertThat(QuantizedFiles.layers(Set.of("a.weight", "a.bias", "SCB"))).isEmpty();
    }

    @ParameterizedTest
    @CsvSource({"true", "false"})
    void whatIsWrittenIsReadBack(boolean sharded) throws IOException {
        Map<String, QuantizedWeight> weights = new LinkedHashMap<>();
        weights.put("model.layers.0.up", FourBitWeight.quantize(torch.randn(5, 33), FourBit.NF4, 64, true));
        weights.put("model.layers.10.up", FourBitWeight.quantize(torch.randn(3, 64), FourBit.FP4, 32, false));
        weights.put("down", Int8Weight.quantize(torch.randn(7, 9)));
        Map<String, Tensor> tensors = new LinkedHashMap<>();
        weights.forEach((path, weight) -> tensors.putAll(QuantizedFiles.tensors(path, weight)));
        Path path = sharded ? folder : folder.resolve("model.safetensors");
        if (sharded) {
            List<Path> files = TensorFiles.writeCheckpoint(folder, tensors, TensorFiles.METADATA, 1200);
            assertThat(files.size()).isGreaterThan(2);
        } else {
            TensorFiles.write(path, tensors, TensorFiles.METADATA);
        }
        try (MappedTensors files = TensorFiles.open(path)) {
            assertThat(QuantizedFiles.layers(files.names()))
                    .isEqualTo(weights.keySet().stream().collect(java.util.stream.Collectors.toSet()));
            for (Map.Entry<String, QuantizedWeight> entry : weights.entrySet()) {
                QuantizedWeight read = QuantizedFiles.read(files, entry.getKey());
                QuantizedWeight written = entry.getValue();
                assertThat(read.description()).isEqualTo(written.description());
                assertThat(read.rows()).isEqualTo(written.rows());
                assertThat(read.columns()).isEqualTo(written.columns());
                assertThat(read.dequantize(ScalarType.Float).equal(written.dequantize(ScalarType.Float)))
                        .isTrue();
            }
        }
    }

    private Map<String, Tensor> fourBit(boolean nested) {
        return new LinkedHashMap<>(
                QuantizedFiles.tensors("l", FourBitWeight.quantize(torch.randn(4, 32), FourBit.NF4, 64, nested)));
    }

    private void refused(Map<String, Tensor> tensors, String message) throws IOException {
        Path file = folder.resolve("broken.safetensors");
        TensorFiles.write(file, tensors, TensorFiles.METADATA);
        try (MappedTensors files = TensorFiles.open(file)) {
            assertThatThrownBy(() -> QuantizedFiles.read(files, "l"))
                    .hasMessageContaining("l")
                    .hasMessageContaining(message);
        }
    }

    @ParameterizedTest
    @CsvSource({"weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map"})
    void aMissingTensorIsNamed(String name) throws IOException {
        Map<String, Tensor> tensors = fourBit(true);
        assertThat(tensors.remove("l." + name)).isNotNull();
        refused(tensors, "the tensors [l." + name + "] are missing");
    }

    @Test
    void aTensorTooManyIsNamed() throws IOException {
        Map<String, Tensor> tensors = fourBit(true);
        tensors.put(STATE, fourBit(false).get(STATE));
        refused(tensors, "and [l.weight.nested_absmax, l.weight.nested_quant_map] unexpected");
    }

    @Test
    void otherValuesAreRefused() throws IOException {
        Map<String, Tensor> tensors = fourBit(false);
        tensors.get("l.weight.quant_map").mul_(new Scalar(0.99));
        refused(tensors, "does not hold the 16 values of nf4");
    }

    @Test
    void wrongSizesAreRefused() throws IOException {
        Map<String, Tensor> tensors = fourBit(false);
        tensors.put("l.weight", tensors.get("l.weight").narrow(0, 0, 63));
        refused(tensors, "must be Byte[64, 1], but is Byte[63, 1]");
        tensors = fourBit(false);
        tensors.put("l.weight.absmax", torch.zeros(3));
        refused(tensors, "absmax has 3 scales");
        tensors = fourBit(true);
        tensors.put("l.weight.nested_quant_map", torch.zeros(255));
        refused(tensors, "nested_quant_map must be Float[256]");
    }

    @ParameterizedTest
    @CsvSource(
            delimiter = '|',
            value = {
                "\"nf4\" | \"int4\" | quant_type is \"int4\"",
                "64 | 48 | blockSize is 48",
                "[4, 32] | [2, 2, 32] | only matrices of",
                "float32 | float64 | only matrices of",
                "[4, 32] | [9223372036854775807, 32] | overflow",
            })
    void aStateThatDoesNotFitIsRefused(String part, String other, String message) throws IOException {
        Map<String, Tensor> tensors = fourBit(false);
        String json = "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"float32\", \"shape\": [4, 32]}";
        tensors.put(
                STATE,
                torch.tensor(json.replace(part, other).getBytes(StandardCharsets.UTF_8))
                        .view(ScalarType.Byte));
        refused(tensors, message);
    }

    @Test
    void aStateThatIsNoJsonIsAFormatError() throws IOException {
        Map<String, Tensor> tensors = fourBit(false);
        tensors.put(STATE, torch.tensor("{nf4".getBytes(StandardCharsets.UTF_8)).view(ScalarType.Byte));
        Path file = folder.resolve("broken.safetensors");
        TensorFiles.write(file, tensors, TensorFiles.METADATA);
        try (MappedTensors files = TensorFiles.open(file)) {
            assertThatThrownBy(() -> QuantizedFiles.read(files, "l"))
                    .isInstanceOf(FormatException.class)
                    .hasMessageContaining(STATE);
        }
    }

    @Test
    void otherLayoutsOfEightBitsAreRefused() throws IOException {
        Map<String, Tensor> tensors =
                new LinkedHashMap<>(QuantizedFiles.tensors("l", Int8Weight.quantize(torch.randn(3, 4))));
        tensors.get("l.weight_format").fill_(new Scalar(2));
        refused(tensors, "weight_format is 2, but only rows (0) can be read");
        tensors.remove("l.weight_format");
        Path file = folder.resolve("old.safetensors");
        TensorFiles.write(file, tensors, TensorFiles.METADATA);
        try (MappedTensors files = TensorFiles.open(file)) {
            assertThat(QuantizedFiles.read(files, "l").rows()).isEqualTo(3);
        }
    }

    @Test
    void aPlainWeightIsNoQuantizedOne() throws IOException {
        refused(Map.of("l.weight", torch.zeros(2, 2)), "this weight is not one that bitsandbytes has quantized");
    }
}
