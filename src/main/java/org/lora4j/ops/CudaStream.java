package org.lora4j.ops;

import java.lang.reflect.Method;
import org.bytedeco.javacpp.Pointer;

/** The address of LibTorch's current CUDA stream. */
final class CudaStream {
    private CudaStream() {}

    /**
     * The current stream of this thread as a {@code cudaStream_t}. Reached by reflection: its type belongs to the CUDA
     * preset, which only the cuda profile puts on the class path.
     *
     * @param device number of the CUDA device
     * @throws IllegalStateException if the CUDA preset is missing
     */
    static long current(byte device) {
        try {
            Class<?> torchCuda = Class.forName("org.bytedeco.pytorch.global.torch_cuda");
            Object stream =
                    torchCuda.getMethod("getCurrentCUDAStream", byte.class).invoke(null, device);
            Method handle = stream.getClass().getMethod("stream");
            Pointer pointer = (Pointer) handle.invoke(stream);
            return pointer == null ? 0 : pointer.address();
        } catch (ReflectiveOperationException | LinkageError e) {
            throw new IllegalStateException(
                    "LibTorch's CUDA stream cannot be read: put org.bytedeco:cuda and the -gpu classifier of"
                            + " org.bytedeco:pytorch on the class path (profile cuda)",
                    e);
        }
    }
}
