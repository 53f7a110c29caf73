package org.lora4j.ops;

import java.io.IOException;
import java.nio.ByteOrder;
import java.nio.channels.WritableByteChannel;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.lora4j.format.DType;
import org.lora4j.format.PyTorchFile;
import org.lora4j.format.SafetensorsWriter;
import org.lora4j.format.ShardedCheckpoint;
import org.lora4j.format.ShardedCheckpointWriter;
import org.lora4j.format.TensorSource;

/** Tensors in files: safetensors, and those of {@code torch.save} to read. */
public final class TensorFiles {
    /** What PEFT and transformers expect as metadata. */
    public static final Map<String, String> METADATA = Map.of("format", "pt");

    private static final long SLICE_BYTES = 1L << 24;

    static {
        LibTorch.load();
        if (ByteOrder.nativeOrder() != ByteOrder.LITTLE_ENDIAN) {
            throw new IllegalStateException(
                    "safetensors files are little endian and this machine is not; use x86-64 or AArch64");
        }
    }

    private TensorFiles() {}

    /**
     * Maps a safetensors file, a folder with a checkpoint, the index of one, or a file of {@code torch.save} that holds a
     * dict of tensors, such as {@code adapter_model.bin}. Of the last, tensors that do not lie in row-major order and
     * little endian are copies, made when they are asked for.
     *
     * @throws org.lora4j.format.FormatException if a file is defective; nothing is mapped then
     */
    public static MappedTensors open(Path path) throws IOException {
        if (PyTorchFile.recognises(path)) {
            return MappedTensors.of(PyTorchFile.open(path));
        }
        try (ShardedCheckpoint checkpoint = ShardedCheckpoint.open(path)) {
            return new MappedTensors(checkpoint.files());
        }
    }

    /**
     * Writes tensors into one file, replacing it in a single step. A file that is replaced may be mapped, even by the
     * tensors written. Tensors of any device and strides are taken, one at a time; those that share memory are each
     * written in full.
     *
     * @throws IllegalArgumentException naming the tensor, if safetensors cannot hold it
     */
    public static void write(Path file, Map<String, Tensor> tensors, Map<String, String> metadata) throws IOException {
        SafetensorsWriter writer = new SafetensorsWriter(metadata);
        for (Map.Entry<String, Tensor> entry : tensors.entrySet()) {
            String name = entry.getKey();
            Tensor tensor = entry.getValue();
            DType dtype = dtype(name, tensor);
            writer.add(name, dtype, shape(name, dtype, tensor), source(tensor));
        }
        writer.write(file);
    }

    /**
     * Writes tensors as a checkpoint of one or more shards into a folder that holds none.
     *
     * @param maxShardBytes the most bytes of tensors in one shard
     * @return the files written
     * @throws IllegalArgumentException naming the tensor, if safetensors cannot hold it
     */
    public static List<Path> writeCheckpoint(
            Path folder, Map<String, Tensor> tensors, Map<String, String> metadata, long maxShardBytes)
            throws IOException {
        ShardedCheckpointWriter writer = new ShardedCheckpointWriter(metadata, maxShardBytes);
        for (Map.Entry<String, Tensor> entry : tensors.entrySet()) {
            String name = entry.getKey();
            Tensor tensor = entry.getValue();
            DType dtype = dtype(name, tensor);
            writer.add(name, dtype, shape(name, dtype, tensor), source(tensor));
        }
        return writer.write(folder);
    }

    /**
     * The element type a tensor has in a file.
     *
     * @throws IllegalArgumentException naming the tensor, if safetensors has no such type or the tensor is not dense
     */
    public static DType dtype(String name, Tensor tensor) {
        if (!tensor.defined() || tensor.layout().intern() != torch.Layout.Strided || tensor.is_meta()) {
            throw new IllegalArgumentException("tensor \"" + name + "\": is " + Tensors.describe(tensor)
                    + " without dense data; convert it to a strided tensor first");
        }
        try {
            return DTypes.safetensors(Tensors.type(tensor));
        } catch (IllegalArgumentException e) {
            throw new IllegalArgumentException("tensor \"" + name + "\": " + e.getMessage(), e);
        }
    }

    private static long[] shape(String name, DType dtype, Tensor tensor) {
        try {
            return DTypes.safetensorsShape(dtype, Tensors.shape(tensor));
        } catch (IllegalArgumentException e) {
            throw new IllegalArgumentException("tensor \"" + name + "\": " + e.getMessage(), e);
        }
    }

    /**
     * The bytes of a tensor in row-major order, for a writer. The tensor must stay open until it is written; a copy is
     * made then if it is not contiguous on the CPU.
     */
    public static TensorSource source(Tensor tensor) {
        return out -> write(tensor, out);
    }

    private static void write(Tensor tensor, WritableByteChannel out) throws IOException {
        try (Tensor detached = tensor.detach();
                Tensor onCpu = detached.cpu();
                Tensor plain = onCpu.resolve_conj();
                Tensor positive = plain.resolve_neg();
                Tensor contiguous = positive.contiguous()) {
            long bytes = contiguous.nbytes();
            Pointer data = contiguous.data_ptr();
            for (long begin = 0; begin < bytes; begin += SLICE_BYTES) {
                long end = Math.min(bytes, begin + SLICE_BYTES);
                out.write(new BytePointer(data).position(begin).limit(end).asByteBuffer());
            }
        }
    }
}
