package org.lora4j.format;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Reads and writes what Python's safetensors wrote; make_safetensors.py states the same list of tensors. */
class SafetensorsGoldenTest {
    private record Spec(DType dtype, long... shape) {}

    private static final Map<String, Spec> TENSORS = new LinkedHashMap<>();

    static {
        TENSORS.put("bool", new Spec(DType.BOOL, 3, 5));
        TENSORS.put("u8", new Spec(DType.U8, 7));
        TENSORS.put("i8", new Spec(DType.I8, 2, 3));
        TENSORS.put("f8_e5m2", new Spec(DType.F8_E5M2, 5));
        TENSORS.put("f8_e4m3", new Spec(DType.F8_E4M3, 5, 1));
        TENSORS.put("f8_e8m0", new Spec(DType.F8_E8M0, 3));
        TENSORS.put("f8_e4m3fnuz", new Spec(DType.F8_E4M3FNUZ, 1, 2));
        TENSORS.put("f8_e5m2fnuz", new Spec(DType.F8_E5M2FNUZ, 2, 2));
        TENSORS.put("f4", new Spec(DType.F4, 3, 4));
        TENSORS.put("i16", new Spec(DType.I16, 3));
        TENSORS.put("u16", new Spec(DType.U16, 2));
        TENSORS.put("f16", new Spec(DType.F16, 2, 2, 3));
        TENSORS.put("bf16", new Spec(DType.BF16, 9));
        TENSORS.put("i32", new Spec(DType.I32, 1, 1));
        TENSORS.put("u32", new Spec(DType.U32, 2));
        TENSORS.put("f32", new Spec(DType.F32, 4, 3));
        TENSORS.put("c64", new Spec(DType.C64, 2));
        TENSORS.put("f64", new Spec(DType.F64, 3));
        TENSORS.put("i64", new Spec(DType.I64));
        TENSORS.put("u64", new Spec(DType.U64, 1));
        TENSORS.put("empty", new Spec(DType.F32, 0, 4));
        TENSORS.put("base_model.model.layers.0.q_proj.lora_A.weight", new Spec(DType.F32, 1, 3));
        TENSORS.put("base_model.model.layers.10.q_proj.lora_A.weight", new Spec(DType.F32, 1, 3));
        TENSORS.put("quote \" backslash \\ tab \t bell \u0007 delete \u007f", new Spec(DType.F32, 1));
        TENSORS.put("\u00e4 \u4e2d \ud83d\ude00 \ue000", new Spec(DType.F32, 1));
        TENSORS.put("\ue000", new Spec(DType.F32, 1));
        TENSORS.put("\ud83d\ude00", new Spec(DType.F32, 1));
    }

    /** The bytes of tensor number k by the generator's rule. */
    private static byte[] data(int k, Spec spec) {
        byte[] data = new byte[(int) SafetensorsHeader.bytes(spec.dtype(), spec.shape())];
        for (int i = 0; i < data.length; i++) {
            int value = (37 * i + 11 * k + 5) & 0xff;
            data[i] = (byte) (spec.dtype() == DType.BOOL ? value % 2 : value);
        }
        return data;
    }

    @Test
    void readsEveryTensorPythonWrote() throws IOException {
        try (SafetensorsFile file = SafetensorsFile.open(Golden.path("safetensors/all_types.safetensors"))) {
            assertThat(file.metadata()).containsExactly(Map.entry("format", "pt"));
            assertThat(file.tensors().keySet()).containsExactlyInAnyOrderElementsOf(TENSORS.keySet());
            int k = 0;
            for (Map.Entry<String, Spec> entry : TENSORS.entrySet()) {
                TensorInfo info = file.tensor(entry.getKey());
                assertThat(info.dtype())
                        .as(entry.getKey())
                        .isEqualTo(entry.getValue().dtype());
                assertThat(info.shape())
                        .as(entry.getKey())
                        .isEqualTo(entry.getValue().shape());
                ByteBuffer expected = ByteBuffer.wrap(data(k++, entry.getValue()));
                assertThat(file.read(entry.getKey())).as(entry.getKey()).isEqualTo(expected);
                assertThat(file.map(entry.getKey())).as(entry.getKey()).isEqualTo(expected);
            }
        }
    }

    @Test
    void writesTheBytesPythonWrites(@TempDir Path folder) throws IOException {
        List<String> names = new ArrayList<>(TENSORS.keySet());
        SafetensorsWriter all = new SafetensorsWriter(Map.of("format", "pt"));
        List<String> shuffled = new ArrayList<>(names);
        Collections.shuffle(shuffled, new Random(7));
        for (String name : shuffled) {
            add(all, name, names.indexOf(name), TENSORS.get(name));
        }
        Path file = folder.resolve("model.safetensors");
        all.write(file);
        assertThat(file).hasSameBinaryContentAs(Golden.path("safetensors/all_types.safetensors"));

        SafetensorsWriter plain = new SafetensorsWriter(Map.of());
        add(plain, "w", 0, new Spec(DType.F32, 2, 3));
        plain.write(file);
        assertThat(file).hasSameBinaryContentAs(Golden.path("safetensors/no_metadata.safetensors"));

        new SafetensorsWriter(Map.of("format", "pt")).write(file);
        assertThat(file).hasSameBinaryContentAs(Golden.path("safetensors/no_tensors.safetensors"));
        assertThat(Files.list(folder)).containsExactly(file);
    }

    private static void add(SafetensorsWriter writer, String name, int k, Spec spec) {
        writer.add(name, spec.dtype(), spec.shape(), out -> out.write(ByteBuffer.wrap(data(k, spec))));
    }
}
