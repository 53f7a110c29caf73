package org.lora4j.cli;

import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.HexFormat;
import java.util.Map;
import java.util.TreeMap;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.StringTensorDictItemVector;
import org.bytedeco.pytorch.Tensor;
import org.lora4j.ops.Tensors;

/** SHA-256 over the bits of a model's weights. */
final class Checksum {
    private static final long SLICE = 1 << 30;

    private Checksum() {}

    /** The digest of every parameter's name, type, shape and bytes, in the order of the names, as hex digits. */
    static String of(Module model) {
        MessageDigest digest = sha256();
        try (PointerScope scope = new PointerScope()) {
            StringTensorDictItemVector items = model.named_parameters().items();
            Map<String, Tensor> parameters = new TreeMap<>();
            for (long i = 0; i < items.size(); i++) {
                parameters.put(items.get(i).key().getString(), items.get(i).value());
            }
            parameters.forEach((name, tensor) -> {
                digest.update((name + Tensors.describe(tensor)).getBytes(StandardCharsets.UTF_8));
                addBytes(digest, tensor);
            });
        }
        return HexFormat.of().formatHex(digest.digest());
    }

    private static void addBytes(MessageDigest digest, Tensor tensor) {
        try (PointerScope scope = new PointerScope()) {
            Tensor dense = tensor.detach().cpu().contiguous();
            long size = dense.numel() * dense.element_size();
            BytePointer bytes = new BytePointer(dense.data_ptr());
            for (long from = 0; from < size; from += SLICE) {
                digest.update(
                        bytes.position(from).limit(Math.min(from + SLICE, size)).asByteBuffer());
            }
        }
    }

    private static MessageDigest sha256() {
        try {
            return MessageDigest.getInstance("SHA-256");
        } catch (NoSuchAlgorithmException e) {
            throw new AssertionError("every Java has SHA-256", e);
        }
    }
}
