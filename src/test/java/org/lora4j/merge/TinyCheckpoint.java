package org.lora4j.merge;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.WritableByteChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.lora4j.config.LoraConfig;
import org.lora4j.config.LoraConfigBuilder;
import org.lora4j.format.AdapterConfigJson;
import org.lora4j.format.AdapterFolder;
import org.lora4j.format.DType;
import org.lora4j.format.SafetensorsWriter;
import org.lora4j.format.ShardedCheckpointWriter;
import org.lora4j.format.TensorSource;

/** Checkpoints of Llama's shape and adapters for them, with random numbers of a seed; sizes are odd. */
public final class TinyCheckpoint {
    static final Map<String, String> METADATA = Map.of("format", "pt");

    static final int VOCABULARY = 41;
    static final int HIDDEN = 24;
    static final int INNER = 37;

    final Map<String, long[]> shapes = new LinkedHashMap<>();
    private final int layers;
    private final boolean tied;
    private final int scale;

    public TinyCheckpoint(int layers, boolean tied) {
        this(layers, tied, 1);
    }

    /** @param scale makes every size this many times as large */
    TinyCheckpoint(int layers, boolean tied, int scale) {
        this.layers = layers;
        this.tied = tied;
        this.scale = scale;
        long h = (long) HIDDEN * scale;
        long inner = (long) INNER * scale;
        shapes.put("model.embed_tokens.weight", new long[] {(long) VOCABULARY * scale, h});
        for (int i = 0; i < layers; i++) {
            String layer = "model.layers." + i + ".";
            shapes.put(layer + "self_attn.q_proj.weight", new long[] {h, h});
            shapes.put(layer + "self_attn.k_proj.weight", new long[] {h / 3, h});
            shapes.put(layer + "self_attn.v_proj.weight", new long[] {h / 3, h});
            shapes.put(layer + "self_attn.o_proj.weight", new long[] {h, h});
            shapes.put(layer + "mlp.gate_proj.weight", new long[] {inner, h});
            shapes.put(layer + "mlp.up_proj.weight", new long[] {inner, h});
            shapes.put(layer + "mlp.down_proj.weight", new long[] {h, inner});
            shapes.put(layer + "input_layernorm.weight", new long[] {h});
        }
        shapes.put("model.norm.weight", new long[] {h});
        if (!tied) {
            shapes.put("lm_head.weight", new long[] {(long) VOCABULARY * scale, h});
        }
    }

    /** Writes it with its configuration and two files of a tokenizer. */
    public Path write(Path folder, DType dtype, long shardBytes, long seed) throws IOException {
        Files.createDirectories(folder);
        Files.writeString(folder.resolve("config.json"), config());
        Files.writeString(folder.resolve("tokenizer.json"), "{\"model\": {}}\n");
        Files.writeString(folder.resolve("generation_config.json"), "{}");
        ShardedCheckpointWriter writer = new ShardedCheckpointWriter(METADATA, shardBytes);
        Random random = new Random(seed);
        shapes.forEach((name, shape) -> writer.add(name, dtype, shape, numbers(random.nextLong(), dtype, shape, 0.05)));
        writer.write(folder);
        return folder;
    }

    String config() {
        return "{\"model_type\": \"llama\", \"vocab_size\": " + VOCABULARY * scale + ", \"num_hidden_layers\": "
                + layers
                + ", \"hidden_size\": " + HIDDEN * scale + ", \"rms_norm_eps\": 1e-05, \"tie_word_embeddings\": " + tied
                + "}";
    }

    /** Writes an adapter for modules whose names end so. */
    public Path adapter(Path folder, DType dtype, LoraConfigBuilder builder, long seed, String... targets)
            throws IOException {
        LoraConfig config = builder.targetModules(targets).build();
        SafetensorsWriter writer = new SafetensorsWriter(METADATA);
        Random random = new Random(seed);
        for (String module : modules(targets)) {
            long[] shape = shapes.get(module + ".weight");
            int rank = config.rankFor(module);
            String key = "base_model.model." + module;
            add(writer, key + ".lora_A.weight", dtype, new long[] {rank, shape[1]}, random);
            add(writer, key + ".lora_B.weight", dtype, new long[] {shape[0], rank}, random);
            if (config.useDora()) {
                long[] magnitude = {shape[0]};
                writer.add(
                        key + ".lora_magnitude_vector",
                        dtype,
                        magnitude,
                        numbers(random.nextLong(), dtype, magnitude, 0.5));
            }
        }
        Files.createDirectories(folder);
        writer.write(folder.resolve(AdapterFolder.SAFETENSORS));
        AdapterConfigJson.write(folder.resolve(AdapterConfigJson.FILE_NAME), config);
        return folder;
    }

    List<String> modules(String... targets) {
        List<String> modules = new ArrayList<>();
        for (String name : shapes.keySet()) {
            String module = name.substring(0, name.length() - ".weight".length());
            for (String target : targets) {
                if (module.equals(target) || module.endsWith("." + target)) {
                    modules.add(module);
                }
            }
        }
        return modules;
    }

    private static void add(SafetensorsWriter writer, String name, DType dtype, long[] shape, Random random) {
        writer.add(name, dtype, shape, numbers(random.nextLong(), dtype, shape, 0.1));
    }

    /** Normal random numbers. */
    static TensorSource numbers(long seed, DType dtype, long[] shape, double deviation) {
        return out -> {
            Random random = new Random(seed);
            long count = Numbers.count(shape);
            ByteBuffer buffer = ByteBuffer.allocate(1 << 16).order(ByteOrder.LITTLE_ENDIAN);
            for (long i = 0; i < count; i++) {
                put(buffer, dtype, (float) (random.nextGaussian() * deviation));
                if (buffer.remaining() < 8) {
                    flush(buffer, out);
                }
            }
            flush(buffer, out);
        };
    }

    /** Given numbers. */
    static TensorSource values(DType dtype, double... values) {
        return out -> {
            ByteBuffer buffer = ByteBuffer.allocate(8 * values.length).order(ByteOrder.LITTLE_ENDIAN);
            for (double value : values) {
                put(buffer, dtype, (float) value);
            }
            flush(buffer, out);
        };
    }

    private static void flush(ByteBuffer buffer, WritableByteChannel out) throws IOException {
        buffer.flip();
        while (buffer.hasRemaining()) {
            out.write(buffer);
        }
        buffer.clear();
    }

    private static void put(ByteBuffer buffer, DType dtype, float value) {
        switch (dtype) {
            case F32 -> buffer.putFloat(value);
            case BF16 -> buffer.putShort((short) (Float.floatToRawIntBits(value) + 0x8000 >>> 16));
            case F16 -> buffer.putShort(half(value));
            default -> throw new IllegalArgumentException(dtype.name());
        }
    }

    /** Towards zero, which is near enough for random numbers. */
    private static short half(float value) {
        int sign = value < 0 ? 0x8000 : 0;
        double size = Math.abs(value);
        if (size < 0x1p-14) {
            return (short) (sign | (int) (size * 0x1p24));
        }
        int exponent = Math.getExponent(size);
        return (short) (sign | exponent + 15 << 10 | (int) ((Math.scalb(size, -exponent) - 1) * 1024));
    }
}
