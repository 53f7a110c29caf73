package org.lora4j.format;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;

/** A safetensors file with random tensors of every type, scalars and empty ones among them. */
final class RandomFile {
    record Tensor(DType dtype, long[] shape, byte[] data) {}

    final Map<String, Tensor> tensors = new LinkedHashMap<>();
    final Map<String, String> metadata = new LinkedHashMap<>();

    RandomFile(long seed) {
        Random random = new Random(seed);
        int count = random.nextInt(12);
        for (int i = 0; i < count; i++) {
            DType dtype = DType.values()[random.nextInt(DType.values().length)];
            long[] shape = new long[random.nextInt(5)];
            for (int d = 0; d < shape.length; d++) {
                shape[d] = random.nextInt(8) == 0 ? 0 : 1 + random.nextInt(5);
            }
            if (dtype.bits() % 8 != 0) {
                // A multiple of four such elements fills whole bytes.
                shape = shape.length == 0 ? new long[] {4} : shape;
                shape[shape.length - 1] *= 4;
            }
            byte[] data = new byte[(int) SafetensorsHeader.bytes(dtype, shape)];
            random.nextBytes(data);
            tensors.put(name(random), new Tensor(dtype, shape, data));
        }
        for (int i = random.nextInt(3); i > 0; i--) {
            metadata.put(name(random), name(random));
        }
    }

    private static String name(Random random) {
        List<String> parts =
                List.of("layers", "0", "q_proj", "\u00e9", "\ud83d\ude00", "\"", "\\", "\n", " ", "\u0001");
        List<String> chosen = new ArrayList<>();
        for (int i = random.nextInt(6); i >= 0; i--) {
            chosen.add(parts.get(random.nextInt(parts.size())));
        }
        return String.join(".", chosen) + random.nextInt(1000);
    }

    void write(Path path) throws IOException {
        SafetensorsWriter writer = new SafetensorsWriter(metadata);
        tensors.forEach((name, tensor) -> writer.add(name, tensor.dtype(), tensor.shape(), out -> {
            int half = tensor.data().length / 2;
            out.write(ByteBuffer.wrap(tensor.data(), 0, half));
            out.write(ByteBuffer.wrap(tensor.data(), half, tensor.data().length - half));
        }));
        writer.write(path);
    }
}
