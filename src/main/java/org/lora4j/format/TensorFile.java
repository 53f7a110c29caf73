package org.lora4j.format;

import java.io.Closeable;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.file.Path;
import java.util.Map;
import java.util.OptionalLong;

/**
 * An open file of named tensors, checked in full before any of them is read. Reading is safe from several threads; what
 * is read is in row-major order and little endian, whatever the file has.
 */
public sealed interface TensorFile extends Closeable permits SafetensorsFile, PyTorchFile, GgufFile {
    /**
     * Opens a file of any of the formats, told apart by its first bytes; a name that ends in {@code .safetensors} decides
     * without them.
     *
     * @throws FormatException if the file is defective
     */
    static TensorFile open(Path path) throws IOException {
        if (!path.toString().endsWith(".safetensors") && GgufFile.recognises(path)) {
            return GgufFile.open(path);
        }
        return PyTorchFile.recognises(path) ? PyTorchFile.open(path) : SafetensorsFile.open(path);
    }

    Path path();

    /** The strings that describe the file; none in a file of PyTorch. */
    Map<String, String> metadata();

    /** The tensors by name. */
    Map<String, TensorInfo> tensors();

    /**
     * One tensor.
     *
     * @throws IllegalArgumentException if the file has none of this name
     */
    default TensorInfo tensor(String name) {
        TensorInfo tensor = tensors().get(name);
        if (tensor == null) {
            throw new IllegalArgumentException(path() + ": has no tensor \"" + name + "\"; it has "
                    + tensors().size() + ", see tensors()");
        }
        return tensor;
    }

    /**
     * Where in the file the bytes of a tensor lie in row-major order and little endian, or nothing if they lie there in
     * another way.
     *
     * @throws IllegalArgumentException if the file has none of this name
     */
    OptionalLong place(String name);

    /**
     * All bytes of a tensor, ready to be read.
     *
     * @throws IllegalArgumentException if there is no such tensor, or its bytes are more than a buffer can hold
     */
    ByteBuffer read(String name) throws IOException;

    /**
     * The bytes of a tensor for a writer. The file must be open when they are asked for.
     *
     * @throws IllegalArgumentException if the file has none of this name
     */
    TensorSource source(String name);
}
