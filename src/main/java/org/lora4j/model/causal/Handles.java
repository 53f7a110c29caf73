package org.lora4j.model.causal;

import java.util.ArrayList;
import java.util.List;
import org.bytedeco.javacpp.Pointer;
import org.lora4j.ops.Tensors;

/** Native handles that live until this is closed, whatever scope they were made in. */
final class Handles implements AutoCloseable {
    private final List<Pointer> handles = new ArrayList<>();

    synchronized <P extends Pointer> P keep(P handle) {
        handles.add(Tensors.keep(handle));
        return handle;
    }

    @Override
    public synchronized void close() {
        handles.forEach(Pointer::close);
        handles.clear();
    }
}
