package org.lora4j.merge;

import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.lora4j.ops.LowRank;
import org.lora4j.ops.Ops;
import org.lora4j.ops.Tensors;

/**
 * The difference in bits between the original and the merged weight with the updates subtracted again, which is near it:
 * most bits are equal, and zlib makes the rest small. The bytes of a number are stored apart, since those with the exponent
 * differ least.
 */
final class DeflatedResidual implements Residual {
    @Override
    public String name() {
        return "xor-planes-zlib-" + Ops.current().name();
    }

    @Override
    public byte[] encode(Tensor original, Tensor merged, List<LowRank> updates) {
        Tensor predicted = predicted(merged, updates, Tensors.type(original));
        byte[] before = bytes(original);
        byte[] after = bytes(predicted);
        int size = (int) original.element_size();
        byte[] planes = new byte[before.length];
        int count = before.length / size;
        for (int b = 0; b < size; b++) {
            for (int i = 0; i < count; i++) {
                planes[b * count + i] = (byte) (before[i * size + b] ^ after[i * size + b]);
            }
        }
        return Deflated.deflate(planes);
    }

    @Override
    public void decode(byte[] residual, Tensor merged, List<LowRank> updates, Tensor original) {
        Tensor predicted = predicted(merged, updates, Tensors.type(original));
        byte[] after = bytes(predicted);
        byte[] planes = Deflated.inflate(residual, after.length);
        int size = (int) original.element_size();
        int count = after.length / size;
        for (int b = 0; b < size; b++) {
            for (int i = 0; i < count; i++) {
                after[i * size + b] ^= planes[b * count + i];
            }
        }
        memory(original).put(after);
    }

    private static Tensor predicted(Tensor merged, List<LowRank> updates, ScalarType type) {
        Tensor copy = Tensors.type(merged) == type && updates.isEmpty() ? merged : merged.clone();
        if (!updates.isEmpty()) {
            copy = Tensors.type(merged) == type ? copy : copy.to(ScalarType.Float);
            List<LowRank> negated = new ArrayList<>();
            updates.forEach(update -> negated.add(new LowRank(update.a(), update.b(), -update.scale())));
            Ops.current().merge(copy, negated);
        }
        return copy.to(type).contiguous();
    }

    private static byte[] bytes(Tensor tensor) {
        byte[] bytes = new byte[(int) tensor.nbytes()];
        memory(tensor).get(bytes);
        return bytes;
    }

    private static ByteBuffer memory(Tensor tensor) {
        return new BytePointer(tensor.data_ptr()).limit(tensor.nbytes()).asByteBuffer();
    }
}
