package org.lora4j.ops;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.LinkedHashMap;
import java.util.Map;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Device;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.lora4j.format.DType;
import org.lora4j.format.SafetensorsException;
import org.lora4j.format.SafetensorsFile;
import org.lora4j.format.SafetensorsWriter;

class TensorFilesTest {
    private static final Path GOLDEN = Path.of("src/test/resources/golden/safetensors/all_types.safetensors");

    @TempDir
    Path folder;

    private static Tensor random(long... shape) {
        return torch.randn(shape);
    }

    @Test
    void everyTypeOfPythonIsReadAndWrittenBackByteForByte() throws IOException {
        try (PointerScope scope = new PointerScope();
                MappedTensors mapped = TensorFiles.open(GOLDEN)) {
            Map<String, Tensor> tensors = new LinkedHashMap<>();
            for (String name : mapped.names()) {
                tensors.put(name, mapped.tensor(name));
            }
            assertThat(tensors).hasSize(27);
            assertThat(Tensors.shape(tensors.get("f4"))).containsExactly(3, 2);
            assertThat(Tensors.shape(tensors.get("i64"))).isEmpty();
            assertThat(Tensors.describe(tensors.get("bf16"))).isEqualTo("BFloat16[9]");
            assertThat(Tensors.describe(tensors.get("empty"))).isEqualTo("Float[0, 4]");
            Path copy = folder.resolve("copy.safetensors");
            TensorFiles.write(copy, tensors, mapped.metadata());
            assertThat(copy).hasSameBinaryContentAs(GOLDEN);
        }
    }

    @Test
    void valuesArriveAsLibTorchUnderstandsThem() throws IOException {
        try (PointerScope scope = new PointerScope()) {
            Path file = folder.resolve("values.safetensors");
            Tensor f32 = random(3, 5);
            Tensor bf16 = f32.to(ScalarType.BFloat16);
            TensorFiles.write(file, Map.of("f32", f32, "bf16", bf16), TensorFiles.METADATA);
            try (MappedTensors mapped = TensorFiles.open(file)) {
                assertThat(mapped.tensor("f32").equal(f32)).isTrue();
                assertThat(mapped.tensor("bf16").equal(bf16)).isTrue();
                assertThat(mapped.metadata()).isEqualTo(TensorFiles.METADATA);
                assertThat(mapped.info("bf16").dtype()).isEqualTo(DType.BF16);
            }
        }
    }

    @Test
    void tensorsShareTheMappingAndOutliveIt() throws IOException {
        Path file = folder.resolve("w.safetensors");
        try (PointerScope scope = new PointerScope()) {
            Tensor w = random(300, 7);
            TensorFiles.write(file, Map.of("w", w), Map.of());
            MappedTensors mapped = TensorFiles.open(file);
            Tensor first = mapped.tensor("w");
            Tensor second = mapped.tensor("w");
            assertThat(first.data_ptr().address()).isEqualTo(second.data_ptr().address());
            first.close();
            mapped.close();
            assertThatThrownBy(() -> mapped.tensor("w")).isInstanceOf(IllegalArgumentException.class);
            assertThat(second.equal(w)).isTrue();
        }
    }

    @Test
    void writingIntoAMappedTensorLeavesTheFileAlone() throws IOException {
        Path file = folder.resolve("w.safetensors");
        try (PointerScope scope = new PointerScope()) {
            TensorFiles.write(file, Map.of("w", random(4, 4)), Map.of());
            byte[] before = Files.readAllBytes(file);
            try (MappedTensors mapped = TensorFiles.open(file)) {
                mapped.tensor("w").fill_(new Scalar(7f));
                assertThat(mapped.tensor("w").sum().item_float()).isEqualTo(112f);
            }
            assertThat(Files.readAllBytes(file)).isEqualTo(before);
        }
    }

    @Test
    void aMappedFileCanBeReplacedByItsOwnTensors() throws IOException {
        Path file = folder.resolve("w.safetensors");
        try (PointerScope scope = new PointerScope()) {
            Tensor a = random(1000, 3);
            Tensor b = random(2, 5);
            TensorFiles.write(file, Map.of("a", a, "b", b), Map.of());
            try (MappedTensors old = TensorFiles.open(file)) {
                Tensor oldA = old.tensor("a");
                TensorFiles.write(file, Map.of("a", oldA.mul(new Scalar(2f)), "c", old.tensor("b")), Map.of());
                assertThat(oldA.equal(a)).isTrue();
                assertThat(old.tensor("b").equal(b)).isTrue();
            }
            try (MappedTensors replaced = TensorFiles.open(file)) {
                assertThat(replaced.names()).containsExactly("a", "c");
                assertThat(replaced.tensor("a").equal(a.mul(new Scalar(2f)))).isTrue();
                assertThat(replaced.tensor("c").equal(b)).isTrue();
            }
        }
    }

    @Test
    void stridesGradientsAndSharedMemoryAreWrittenAsValues() throws IOException {
        Path file = folder.resolve("w.safetensors");
        try (PointerScope scope = new PointerScope()) {
            Tensor w = random(4, 6);
            Map<String, Tensor> tensors = new LinkedHashMap<>();
            tensors.put("transposed", w.t());
            tensors.put("part", w.narrow(1, 2, 3));
            tensors.put("expanded", w.narrow(0, 0, 1).expand(5, 6));
            tensors.put("whole", w);
            tensors.put("leaf", random(3).requires_grad_(true));
            tensors.put(
                    "conjugate",
                    random(2, 3).to(ScalarType.ComplexFloat).mul(random(2, 3)).conj());
            TensorFiles.write(file, tensors, Map.of());
            try (MappedTensors mapped = TensorFiles.open(file)) {
                assertThat(mapped.names()).hasSize(6);
                for (Map.Entry<String, Tensor> entry : tensors.entrySet()) {
                    assertThat(mapped.tensor(entry.getKey()).equal(entry.getValue()))
                            .as(entry.getKey())
                            .isTrue();
                }
            }
        }
    }

    @Test
    void aTensorThatIsNotAlignedIsCopied() throws IOException {
        Path file = folder.resolve("odd.safetensors");
        byte[] data = new byte[13];
        for (int i = 0; i < data.length; i++) {
            data[i] = (byte) (17 * i + 3);
        }
        String json = "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                + "\"b\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[1,13]}}";
        ByteBuffer bytes = ByteBuffer.allocate(8 + json.length() + data.length)
                .order(ByteOrder.LITTLE_ENDIAN)
                .putLong(json.length())
                .put(json.getBytes(StandardCharsets.UTF_8))
                .put(data);
        Files.write(file, bytes.array());
        try (PointerScope scope = new PointerScope();
                MappedTensors mapped = TensorFiles.open(file);
                SafetensorsFile raw = SafetensorsFile.open(file)) {
            float[] expected = new float[3];
            raw.read("b").asFloatBuffer().get(expected);
            float[] actual = new float[3];
            Tensor b = mapped.tensor("b");
            assertThat(b.data_ptr().address() % 4).isZero();
            b.data_ptr_float().get(actual);
            assertThat(actual).containsExactly(expected);
        }
    }

    @Test
    void aCheckpointOfSeveralShardsIsOneMap() throws IOException {
        try (PointerScope scope = new PointerScope()) {
            Map<String, Tensor> tensors = new LinkedHashMap<>();
            for (int i = 0; i < 5; i++) {
                tensors.put("layers." + i, random(i + 1, 3));
            }
            assertThat(TensorFiles.writeCheckpoint(folder, tensors, TensorFiles.METADATA, 100))
                    .hasSize(4);
            try (MappedTensors mapped = TensorFiles.open(folder)) {
                assertThat(mapped.names()).containsExactlyInAnyOrderElementsOf(tensors.keySet());
                tensors.forEach((name, tensor) ->
                        assertThat(mapped.tensor(name).equal(tensor)).as(name).isTrue());
            }
        }
    }

    @ParameterizedTest
    @EnumSource(names = {"F6_E2M3", "F6_E3M2"})
    void typesLibTorchLacksAreRefusedByName(DType dtype) throws IOException {
        Path file = folder.resolve("f6.safetensors");
        new SafetensorsWriter(Map.of())
                .add("w", dtype, new long[] {4}, out -> out.write(ByteBuffer.allocate(3)))
                .write(file);
        try (MappedTensors mapped = TensorFiles.open(file)) {
            assertThatThrownBy(() -> mapped.tensor("w"))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessageContainingAll("\"w\"", dtype.name());
        }
    }

    @Test
    void anOddNumberOfF4ElementsIsRefused() throws IOException {
        Path file = folder.resolve("f4.safetensors");
        new SafetensorsWriter(Map.of())
                .add("w", DType.F4, new long[] {2, 3}, out -> out.write(ByteBuffer.allocate(3)))
                .write(file);
        try (MappedTensors mapped = TensorFiles.open(file)) {
            assertThatThrownBy(() -> mapped.tensor("w")).hasMessageContainingAll("\"w\"", "F4", "even");
        }
    }

    @Test
    void tensorsSafetensorsCannotHoldAreRefusedByName() {
        Path file = folder.resolve("w.safetensors");
        try (PointerScope scope = new PointerScope()) {
            Tensor complex = random(2).to(ScalarType.ComplexDouble);
            Tensor sparse = random(2, 2).to_sparse();
            Tensor meta = torch.empty(new long[] {2}, new TensorOptions(new Device("meta")), null);
            for (Tensor tensor : new Tensor[] {complex, sparse, meta, new Tensor()}) {
                assertThatThrownBy(() -> TensorFiles.write(file, Map.of("w", tensor), Map.of()))
                        .isInstanceOf(IllegalArgumentException.class)
                        .hasMessageContaining("\"w\"");
            }
        }
        assertThat(file).doesNotExist();
    }

    @Test
    void nothingOfADefectiveFileIsMapped() throws IOException {
        Path file = folder.resolve("w.safetensors");
        try (PointerScope scope = new PointerScope()) {
            TensorFiles.write(file, Map.of("w", random(2, 3)), Map.of());
        }
        byte[] bytes = Files.readAllBytes(file);
        Files.write(file, java.util.Arrays.copyOf(bytes, bytes.length - 1));
        assertThatThrownBy(() -> TensorFiles.open(file))
                .isInstanceOfSatisfying(
                        SafetensorsException.class,
                        e -> assertThat(e.defect()).isEqualTo(SafetensorsException.Defect.DATA_TRUNCATED));
    }

    /** The file is sparse: the holes of its 5 GiB take no space on disk. */
    @Test
    void tensorsBeyondTwoGibibytesAreMapped() throws IOException {
        long big = 5L << 30;
        Path file = folder.resolve("big.safetensors");
        String json = "{\"w\":{\"dtype\":\"F32\",\"shape\":[" + big / 4 + "],\"data_offsets\":[0," + big + "]}}";
        json += " ".repeat(-json.length() & 7);
        try (FileChannel out = FileChannel.open(
                file, StandardOpenOption.CREATE_NEW, StandardOpenOption.WRITE, StandardOpenOption.SPARSE)) {
            out.write(littleEndian(8).putLong(json.length()).flip());
            out.write(ByteBuffer.wrap(json.getBytes(StandardCharsets.UTF_8)));
            out.write(littleEndian(4).putFloat(-2.5f).flip(), 8 + json.length() + big - 4);
        }
        try (PointerScope scope = new PointerScope();
                MappedTensors mapped = TensorFiles.open(file)) {
            Tensor w = mapped.tensor("w");
            assertThat(w.numel()).isEqualTo(big / 4);
            assertThat(w.narrow(0, big / 4 - 1, 1).item_float()).isEqualTo(-2.5f);
            assertThat(w.narrow(0, big / 8, 1).item_float()).isZero();
        }
    }

    @Test
    void aTensorOfSeveralSlicesIsWrittenWhole() throws IOException {
        Path file = folder.resolve("slices.safetensors");
        try (PointerScope scope = new PointerScope()) {
            Tensor w = random((1 << 23) + 3);
            TensorFiles.write(file, Map.of("w", w), Map.of());
            try (MappedTensors mapped = TensorFiles.open(file)) {
                assertThat(mapped.tensor("w").equal(w)).isTrue();
            }
        }
    }

    private static ByteBuffer littleEndian(int bytes) {
        return ByteBuffer.allocate(bytes).order(ByteOrder.LITTLE_ENDIAN);
    }
}
