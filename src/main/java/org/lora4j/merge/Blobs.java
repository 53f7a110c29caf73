package org.lora4j.merge;

import java.nio.ByteBuffer;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.lora4j.format.DType;

/** LibTorch tensors over the memory of direct buffers. */
final class Blobs {
    private Blobs() {}

    /** A matrix over the buffer's bytes from its beginning. The buffer must be reachable as long as the tensor is used. */
    static Tensor matrix(ByteBuffer buffer, DType dtype, long rows, long columns) {
        try (TensorOptions type = new TensorOptions(Numbers.torch(dtype))) {
            BytePointer memory = new BytePointer(buffer.duplicate().clear());
            return torch.from_blob(memory, new long[] {rows, columns}, type);
        }
    }

    /** Whether no number of the buffer, between position and limit, is infinite or not a number. */
    static boolean finite(ByteBuffer buffer, DType dtype) {
        long mask;
        long carry;
        long top;
        switch (dtype) {
            case BF16 -> {
                mask = 0x7f80_7f80_7f80_7f80L;
                carry = 0x7fff_7fff_7fff_7fffL;
                top = 0x8000_8000_8000_8000L;
            }
            case F16 -> {
                mask = 0x7c00_7c00_7c00_7c00L;
                carry = 0x7fff_7fff_7fff_7fffL;
                top = 0x8000_8000_8000_8000L;
            }
            case F32 -> {
                mask = 0x7f80_0000_7f80_0000L;
                carry = 0x7fff_ffff_7fff_ffffL;
                top = 0x8000_0000_8000_0000L;
            }
            default -> {
                return true;
            }
        }
        ByteBuffer bytes = buffer.duplicate().order(java.nio.ByteOrder.nativeOrder());
        int words = bytes.remaining() / Long.BYTES;
        int at = bytes.position();
        long all = top;
        for (int i = 0; i < words; i++) {
            // A number whose exponent is all ones leaves its top bit clear.
            all &= ((bytes.getLong(at + (i << 3)) & mask) ^ mask) + carry;
        }
        int left = bytes.remaining() % Long.BYTES;
        if (left > 0) {
            long word = 0;
            for (int i = 0; i < left; i++) {
                word |= (bytes.get(at + (words << 3) + i) & 0xffL) << (8 * i);
            }
            all &= ((word & mask) ^ mask) + carry;
        }
        return (all & top) == top;
    }
}
